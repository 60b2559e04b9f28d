"""The parts below `workflows.ec2_fleet`. Only `api` imports boto3."""
