"""The input and the answer of a loaded model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Messages = Sequence[Mapping[str, str]]
"""A conversation in OpenAI's format: messages with `role` and `content`, the last one with the role
`user`."""
Input = str | Messages
"""A text or, for chat models, a prompt or a conversation."""


@dataclass(frozen=True)
class Answer:
    """The answer of a model to one input."""

    input: str
    """The text; for a conversation, its last message."""
    output: str | int
    """Predicted class, an integer if the label column holds integers; for chat models, the text of
    the answer."""
    confidence: float | None
    """Probability of the class after temperature scaling, 0 to 1. For a chat model, the exponential
    of the mean log-probability of the tokens, or the similarity for the kind `nearest`. None if it
    is not known."""
    version: str
    """Name of the version that answered."""
    scores: Mapping[str, float] | None = None
    """Probability of each class; None for chat models."""
    answered_by: str | None = None
    """(hybrids only) The part that answered, `first` or `second`."""
    finish_reason: str | None = None
    """(chat only) `stop`, or `length` if the answer reached the maximum number of tokens."""
    reported_model: str | None = None
    """(endpoints only) The model that the endpoint reported."""
    row: int = 0
    """Position of the input in its list, from 0."""


def last_text(value: Input) -> str:
    """Return the text of an input: of a conversation, its last message.

    Raises ValueError for a conversation without messages or with a message that lacks its content.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) or not value or "content" not in value[-1]:
        raise ValueError(
            "a conversation is a list of messages {'role': ..., 'content': ...}; give one or more "
            "messages"
        )
    return value[-1]["content"]
