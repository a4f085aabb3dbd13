"""Rows of the request log: their types and their Parquet columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

Row = dict[str, Any]  # a row by column, as it is written to Parquet; JSON but for the time `at`

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
    """The answer to one text."""

    request_id: str
    at: datetime  # when the answer was ready, UTC
    model: str
    version: str
    digest: str
    row: int  # the text's position in the request, which feedback refers to
    latency_s: float  # from the request's body to the answer
    subject: str | None = None
    attributes: Mapping[str, str] | None = None
    label: str | None = None
    score: float | None = None
    answered_by: str | None = None
    classes: Sequence[str] = ()
    scores: np.ndarray | None = None  # probabilities of the classes, [L]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    text: str | None = None  # the input; of a conversation, its last message
    answer: str | None = None  # a chat model's answer
    finish_reason: str | None = None  # a chat model's; None if the answer broke off
    route: str = "classify"  # `classify`, `compare_answers`, `chat` or `completion`
    caller: str | None = None  # name of the API key that the request carried
    arm: str | None = None
    """`champion`, or `canary` if the challenger answered instead; `shadow` for the challenger's answer to a request
    that the champion answered under the same id. None if the request named another model."""


@dataclass(frozen=True, slots=True)
class FeedbackEntry:
    """The correct label of one text of an earlier request."""

    request_id: str
    at: datetime  # when the feedback came, UTC
    row: int  # the text's position in the request
    label: str
    caller: str | None = None  # name of the API key that the feedback carried
