"""Where things run and where they lie: S3, Ray, the embedded stack, base models and shipped code."""
