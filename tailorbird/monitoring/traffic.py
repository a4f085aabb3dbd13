"""Traffic of a period as arrays: counts by version, labelled answers, and a sample of the
champion's answers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailorbird.config.answers import AnswersConfig
from tailorbird.config.task_rules import TaskName

CHAMPION, SHADOW = ARMS = ("champion", "shadow")
MAX_SAMPLE_ROWS = 5_000
"""Maximum rows of a window for drift: those with the smallest codes, so every reader draws the same
rows."""
SAMPLE = pa.schema(
    {
        "key": pa.uint64(),
        "label": pa.string(),
        "text": pa.string(),
        "text_chars": pa.int32(),  # (chat)
        "day": pa.int32(),  # since 1970, UTC
    }
)
"""Columns of a sample of the champion's answers."""
DAY_US = 86_400_000_000


LABEL = np.dtype(
    [
        ("key", np.uint64),
        ("code", np.int32),  # index into `Labels.names`; -1 for a score without a correct answer
        ("score", np.float32),  # (chat) from 0 to 1; NaN for a label that is not a score
        ("audit", np.int32),  # number of the first audit with the text, from 1; 0 for feedback
        ("at", np.int64),  # microseconds since 1970, UTC; for an audit, the time of the answer
    ]
)


@dataclass(frozen=True, eq=False)
class Labels:
    """Correct labels by request and row; the latest label if a text was labelled more than once.

    For chat, a label is a correct answer, or a person's score of the answer that the client
    received.
    """

    rows: NDArray[np.void]  # [F] of `LABEL`, in order of the keys
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Labelled answers [F] with their arm and score. Times are in microseconds since 1970, UTC."""

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    arms: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """Indices into `ARMS`."""
    at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))
    """From 0 to 1. For classification, 1 for a right answer and 0 otherwise."""
    audits: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Number of the first audit with the text, from 1; 0 for a label from feedback."""
    groups: tuple[tuple[str, ...], ...] = ()  # one tuple per row, one value per column
    labelled_at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    requests: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Codes of the requests. The answers to one request are dependent."""
    by_person: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """(chat) True for a score that a person gave, False for the recipe's metric against a correct
    answer."""
    missing: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """True for an answer that the shadow failed to give; its score is 0."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def audited(self) -> NDArray[np.bool_]:
        return self.audits > 0

    def where(self, mask: NDArray[np.bool_]) -> "Outcomes":
        """Return the rows where the mask [F] is True."""
        groups = tuple(self.groups[row] for row in np.flatnonzero(mask))
        arrays = {name: getattr(self, name)[mask] for name in OUTCOME_ARRAYS}
        return replace(self, groups=groups, **arrays)


OUTCOME_ARRAYS = tuple(field.name for field in fields(Outcomes) if field.name != "groups")


@dataclass(frozen=True, eq=False)
class Traffic:
    """A part of the request log, reduced to the data about one champion and its challenger."""

    num_rows: int = 0
    rows: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Number of rows by arm and digest; the arm is empty if the request named the model."""
    unanswered: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Number of rows without a complete answer: failed and interrupted generations, text
    completions."""
    outcomes: Outcomes = Outcomes()
    sample: pa.Table = field(default_factory=SAMPLE.empty_table)  # of the champion's answers
    redacted: int = 0
    """(chat) Number of labelled rows that are not scored, because personal data in the label were
    redacted."""

    def num_rows_of(self, arm: str, digest: str) -> int:
        return self.rows.get((arm, digest), 0)


@dataclass(frozen=True)
class WatchedVersions:
    """The digests of the versions whose answers are read."""

    champion: str
    challenger: str | None  # the shadow
    groups: tuple[str, ...] = ()  # attributes by which outcomes are grouped
    task: TaskName = "classification"
    metric: str | None = (
        None  # (chat) metric of an answer against a correct answer; None for classification
    )
    answers: AnswersConfig | None = None  # (chat) how structured answers are compared


def merge_traffic(parts: Iterable[Traffic]) -> Traffic:
    """Merge parts of the log; release each part after it is merged."""
    rows = Counter[tuple[str, str]]()
    unanswered = Counter[tuple[str, str]]()
    num_rows = 0
    redacted = 0
    sample = SAMPLE.empty_table()
    outcomes = [Outcomes()]

    for part in parts:
        num_rows += part.num_rows
        redacted += part.redacted
        rows.update(part.rows)
        unanswered.update(part.unanswered)
        sample = smallest_keys(pa.concat_tables([sample, part.sample]))
        outcomes.append(part.outcomes)

    arrays = {}
    for name in OUTCOME_ARRAYS:
        arrays[name] = np.concatenate([getattr(part, name) for part in outcomes])
    groups = tuple(chain.from_iterable(part.groups for part in outcomes))
    return Traffic(
        num_rows=num_rows,
        rows=rows,
        unanswered=unanswered,
        outcomes=Outcomes(**arrays, groups=groups),
        sample=sample,
        redacted=redacted,
    )


def smallest_keys(sample: pa.Table) -> pa.Table:
    """Return the rows with the `MAX_SAMPLE_ROWS` smallest keys, without duplicates."""
    return sample.take(np.unique(sample["key"].to_numpy(), return_index=True)[1][:MAX_SAMPLE_ROWS])
