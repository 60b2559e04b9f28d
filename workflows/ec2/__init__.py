"""Parts of an EC2 fleet: request, launch, bootstrap, lease, teardown; only `api` knows boto3."""
