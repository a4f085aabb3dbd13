"""Types and Parquet columns of the request log's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

Row = dict[str, Any]  # values by Parquet column; all are JSON values except the time `at`

NUM_TOP_CLASSES = 3
ANSWERS = {
    "request_id": "string",
    "x_request_id": "string",
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
    "fallback": "bool",
    "top": "scored",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "text_chars": "int",
    "text": "string",
    "context": "string",
    "answer": "string",
    "finish_reason": "string",
    "failure": "string",
    "reported_model": "string",
    "route": "string",
    "caller": "string",
    "arm": "string",
}
FEEDBACK = {
    "request_id": "string",
    "at": "time",
    "row": "int",
    "label": "string",
    "score": "float",
    "correct_answer": "string",
    "caller": "string",
}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """The answer to one text."""

    request_id: str  # random, made by the replica
    at: datetime  # time of the answer, UTC
    model: str
    version: str
    digest: str
    row: int  # position of the text in the request, for feedback
    latency_s: float  # from the end of the request's body to the answer
    x_request_id: str | None = None  # the client's id, or Serve's; nothing depends on it
    subject: str | None = None
    attributes: Mapping[str, str] | None = None
    label: str | None = None
    score: float | None = None
    answered_by: str | None = None  # part of a hybrid: `first` or `second`
    fallback: bool | None = (
        None  # (hybrids only) true if the other part should have answered, but failed
    )
    classes: Sequence[str] = ()
    scores: np.ndarray | None = None  # probabilities of the classes, [L]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    text_chars: int | None = (
        None  # (chat) length of the last message in characters, also if texts are not stored
    )
    text: str | None = None  # the input, or the last message of a conversation
    context: str | None = (
        None  # earlier messages of a conversation as JSON (see `data.rows.context_json`), if any
    )
    answer: str | None = None  # answer of a chat model
    finish_reason: str | None = None  # finish reason of a chat model; None if the generation failed
    failure: str | None = None  # (chat) why a shadow has no answer: `interrupted` or `failed`
    reported_model: str | None = (
        None  # the model that an endpoint reported; None for models of this service
    )
    route: str = "classify"  # `classify`, `compare`, `chat` or `completion`
    caller: str | None = None  # name of the request's API key
    arm: str | None = None
    """Arm of the experiment: `champion`; `canary` if the challenger answered the request; `shadow`
    for the challenger's answer to a mirrored request, whose answer by the champion has the same id.
    None for requests of other models."""


@dataclass(frozen=True, slots=True)
class FeedbackEntry:
    """The correct label of one text of an earlier request or, for chat, a score or a correct
    answer."""

    request_id: str
    at: datetime  # time of the feedback, UTC
    row: int  # position of the text in the request
    label: str | None = None  # (chat) `good` or `bad`
    score: float | None = None  # (chat) 0 to 1
    correct_answer: str | None = None  # (chat)
    caller: str | None = None  # name of the API key of the feedback request
