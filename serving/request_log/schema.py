"""Entries of the request log. Their fields are the Parquet columns with the same names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict, get_args, get_type_hints

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]  # values by Parquet column; all are JSON values except the time `at`

NUM_TOP_CLASSES = 3


class TopClass(TypedDict):
    """A class with its probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """The answer to one text."""

    request_id: str  # random, made by the replica
    x_request_id: str | None = None  # the client's id, or Serve's; nothing depends on it
    at: datetime  # time of the answer, UTC
    model: str
    version: str
    digest: str
    row: int  # position of the text in the request, for feedback
    latency_ms: float  # from the end of the request's body to the answer
    attributes: Mapping[str, str] | None = None
    label: str | None = None
    score: float | None = None
    answered_by: str | None = None  # part of a hybrid: `first` or `second`
    # (hybrids only) true if the other part should have answered, but failed
    fallback: bool | None = None
    top: Sequence[TopClass] = ()  # the most probable classes
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    # (chat) length of the last message in characters, also if texts are not stored
    text_chars: int | None = None
    text: str | None = None  # the input, or the last message of a conversation
    # earlier messages of a conversation as JSON (see `data.rows.context_json`), if any
    context: str | None = None
    answer: str | None = None  # answer of a chat model
    finish_reason: str | None = None  # finish reason of a chat model; None if the generation failed
    failure: str | None = None  # (chat) why a shadow has no answer: `interrupted` or `failed`
    # the model that an endpoint reported; None for models of this service
    reported_model: str | None = None
    route: str = "classify"  # `classify`, `compare`, `chat` or `completion`
    caller: str | None = None  # name of the request's API key
    arm: str | None = None
    """Arm of the experiment: `champion`, or `shadow` for the challenger's answer to a mirrored
    request, which the champion answered with the same id. None for requests of other models."""


@dataclass(frozen=True, slots=True, kw_only=True)
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


def top_classes(classes: Sequence[str], scores: np.ndarray) -> list[TopClass]:
    """Return the most probable classes, from the probabilities [L] of all."""
    order = np.argsort(-scores, kind="stable")[:NUM_TOP_CLASSES]
    return [TopClass(label=classes[index], score=float(scores[index])) for index in order]


def arrow_schema(entry_type: type[object]) -> "pa.Schema":
    """Return the Arrow schema of the rows of an entry type."""
    import pyarrow as pa

    types: dict[Any, Any] = {
        str: pa.string(),
        datetime: pa.timestamp("us", tz="UTC"),
        int: pa.int32(),
        float: pa.float32(),
        bool: pa.bool_(),
        Mapping[str, str]: pa.string(),  # as JSON
        Sequence[TopClass]: pa.list_(pa.struct({"label": pa.string(), "score": pa.float32()})),
    }
    columns = {}
    for name, hint in get_type_hints(entry_type).items():
        is_optional = type(None) in get_args(hint)
        columns[name] = types[get_args(hint)[0] if is_optional else hint]
    return pa.schema(columns)
