"""From Parquet to tokens: read, check, split and encode, the same code for training, evaluation and serving."""
