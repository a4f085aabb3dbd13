"""Errors of models."""


class ModelError(ValueError):
    """A model cannot be loaded or used; the message names the file and the reason."""
