"""What is below `workflows.ec2_fleet`: EC2 in small parts. Only `api` knows boto3."""
