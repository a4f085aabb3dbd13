"""Read, check, split and tokenize data for training, evaluation and serving."""
