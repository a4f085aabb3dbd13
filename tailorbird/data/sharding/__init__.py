"""Training data larger than memory. Ray Data checks and tokenizes it once and writes shards to S3."""
