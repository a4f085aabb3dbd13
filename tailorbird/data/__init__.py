"""From Parquet to tokens: read, check, split and tokenize, for training, evaluation and serving."""
