"""Columns of the request log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

NUM_TOP_CLASSES = 3
ANSWERS = {
    "request_id": "string",
    "at": "time",
    "model": "string",
    "version": "string",
    "digest": "string",
    "row": "int",
    "latency_ms": "float",
    "subject": "string",
    "attributes": "string",
    "label": "string",
    "score": "float",
    "answered_by": "string",
    "top": "scored",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "text": "string",
    "answer": "string",
    "finish_reason": "string",
    "route": "string",
    "caller": "string",
    "arm": "string",
}
FEEDBACK = {"request_id": "string", "at": "time", "row": "int", "label": "string", "caller": "string"}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One text's answer, as it comes from the request path."""

    request_id: str
    at: datetime
    """When the answer was ready, UTC."""
    model: str
    version: str
    digest: str
    row: int
    """Its place in the request, which feedback names."""
    latency_s: float
    """From the request's body to the answer."""
    subject: str | None = None
    attributes: Mapping[str, str] | None = None
    label: str | None = None
    score: float | None = None
    answered_by: str | None = None
    classes: Sequence[str] = ()
    scores: Any = None
    """Probabilities of the classes, [L]."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    text: str | None = None
    """What was asked; of a conversation, its last message."""
    answer: str | None = None
    """What a chat model said."""
    finish_reason: str | None = None
    """Of a chat model; None where the answer broke off."""
    route: str = "classify"
    """`classify`, `compare`, `chat` or `completion`."""
    caller: str | None = None
    """Name of the key it was asked with."""
    arm: str | None = None
    """`champion`, or `canary` where the version on trial answered instead; `shadow` of that version's answer to what
    the champion answered under the same request id. None where a model was asked for by another name."""


@dataclass(frozen=True, slots=True)
class FeedbackEntry:
    """What was right, of one text of an earlier request."""

    request_id: str
    at: datetime
    """When it was told, UTC."""
    row: int
    """The text's place in the request."""
    label: str
    caller: str | None = None
    """Name of the key it was told with."""
