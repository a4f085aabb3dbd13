"""The input and the answer of a model, loaded or served."""

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
    """Probability of the class after temperature scaling, 0 to 1. For a loaded chat model, the
    exponential of the mean log-probability of the tokens, or the similarity for the kind `nearest`.
    None if it is not known."""
    version: str
    """Name of the version that answered."""
    scores: Mapping[str, float] | None = None
    """Probability of each class; None for chat models, and for a service unless requested."""
    answered_by: str | None = None
    """(hybrids only) The part that answered, `first` or `second`."""
    fallback: bool = False
    """(hybrids only) True if the other part should have answered, but failed."""
    finish_reason: str | None = None
    """(chat only) `stop`, or `length` if the answer reached the maximum number of tokens."""
    reported_model: str | None = None
    """(endpoints only) The model that the endpoint reported."""
    request_id: str | None = None
    """Id of the answer for feedback; None for a loaded model."""
    row: int = 0
    """Position of the input in its request, from 0."""


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
