"""The pages to try a model in a browser."""
