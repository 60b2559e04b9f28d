"""Where durable data is: directories and S3."""
