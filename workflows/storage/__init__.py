"""Durable storage: directories and S3, signed URLs, and messages that say what to do."""
