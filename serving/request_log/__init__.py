"""The request log on S3."""
