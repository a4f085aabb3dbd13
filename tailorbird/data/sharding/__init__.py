"""Training rows that memory does not hold: Ray Data checks and tokenizes them once, into shards on S3."""
