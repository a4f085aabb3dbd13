"""Errors of models."""


class ModelError(ValueError):
    """A model cannot be loaded or used; the message names the file and the reason."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
