"""What a model is here: encoder, pooling and head; how it is loaded, stored and named."""
