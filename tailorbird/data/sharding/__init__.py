"""Training data larger than memory. Ray tasks check and tokenize it once and write shards to S3."""
