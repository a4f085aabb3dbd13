"""Errors of models."""


class ModelError(ValueError):
    """A model that cannot be loaded; the message says which file and why."""
