"""Compose the engines of the two parts of a hybrid."""
