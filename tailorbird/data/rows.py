"""Rows of a data set in memory, and their hashes."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any, TypeVar

import numpy as np

from tailorbird.config.answers import AnswersConfig
from tailorbird.data.splits import normalise

Message = tuple[str, str]  # role and content
Conversation = tuple[Message, ...]

T = TypeVar("T")

SPLIT_NAMES = ("train", "validation", "test")
NO_GROUP = "(none)"
COLUMNS = ("row_ids", "texts", "labels", "split_keys", "conversations", "untrained_turns")
"""Fields of `Rows` that have one value per row."""
MAX_BRANCHES = 10
"""Most ways in which the conversations of one document continue its beginning."""


class DataError(ValueError):
    """Data that cannot be used. The message contains the URI or split, the problem and the next
    step."""


def _pick(column: tuple[T, ...], positions: Sequence[int]) -> tuple[T, ...]:
    return tuple(column[position] for position in positions)


@dataclass(frozen=True)
class SuiteColumns:
    """The columns that only the rows of a suite have."""

    metrics: tuple[str, ...]  # metric of each row, one of `SUITE_METRICS`
    options: tuple[tuple[str, ...], ...]  # options of each row; empty for a metric without options
    counterparts: tuple[str, ...]
    """The prompt that `same_choice` compares with; empty for other metrics."""
    starts: tuple[str, ...]  # text with which the answer starts; the model generates the rest of it

    def take(self, positions: Sequence[int]) -> "SuiteColumns":
        """Return the values at `positions`, in that order."""
        return SuiteColumns(
            **{name: _pick(column, positions) for name, column in vars(self).items()}
        )


@dataclass(frozen=True)
class Rows:
    """Rows of a split, stored by column. All columns have the same length.

    `row_ids` are positions in the file or folder ("0", "1", ...), assigned before any row is
    dropped.
    """

    row_ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    split_keys: tuple[str, ...] | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conversations: tuple[Conversation, ...] | None = None
    """(chat only) Turns before the answer. The label is the answer, and the text is the joined
    content of the turns."""
    untrained_turns: tuple[tuple[int, ...], ...] | None = None
    """(chat only) Positions in `conversations` of the assistant turns with weight 0, which are not
    trained on."""
    answers: AnswersConfig | None = None
    """(chat only) How structured answers are compared with the labels."""
    suite: SuiteColumns | None = None
    """(rows of a suite only) The other columns of the suite. The labels are its expectations."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Rows":
        """Return the rows at `indices`, in that order."""
        positions = [int(index) for index in indices]
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            column = getattr(self, name)
            columns[name] = None if column is None else _pick(column, positions)
        columns["groups"] = {name: _pick(column, positions) for name, column in self.groups.items()}
        return replace(self, suite=self.suite and self.suite.take(positions), **columns)

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The labels if they are classes; empty for chat tasks, where labels are answers."""
        if self.conversations is None:
            return self.labels
        return ()

    @property
    def turns(self) -> tuple[Conversation, ...]:
        """The turns before the answer of each row; a text without conversation is one turn of the
        user."""
        if self.conversations is None:
            return tuple((("user", text),) for text in self.texts)
        return self.conversations

    @property
    def answered_turns(self) -> list[Conversation]:
        """The turns of each row, with the label as the answer."""
        pairs = zip(self.turns, self.labels, strict=True)
        return [(*turns, ("assistant", label)) for turns, label in pairs]

    @property
    def untrained(self) -> tuple[tuple[int, ...], ...]:
        """The `untrained_turns` of each row, none by default."""
        return self.untrained_turns or ((),) * len(self)

    @property
    def queries(self) -> tuple[str, ...]:
        """The text of each row; for chat tasks, the query of its conversation, without system
        message and history."""
        return tuple(map(query_of, self.turns))


@dataclass(frozen=True)
class Splits:
    """Rows of the three splits. Models are evaluated on `test` only in the final test."""

    train: Rows
    validation: Rows
    test: Rows

    def items(self) -> Iterator[tuple[str, Rows]]:
        """Iterate over the name and rows of each split, train first."""
        return iter((name, getattr(self, name)) for name in SPLIT_NAMES)


def text_of(turns: Conversation) -> str:
    """Return the text of a prompt: the joined content of its turns."""
    return "\n".join(content for _, content in turns)


def messages_of(turns: Conversation) -> list[Any]:
    """Return turns as messages `{role, content}`."""
    return [{"role": role, "content": content} for role, content in turns]


def query_of(conversation: Conversation) -> str:
    """Return the text by which a conversation is compared: its last turn of the user, or else its
    last turn."""
    users = [content for role, content in conversation if role == "user"]
    if users:
        return users[-1]
    return conversation[-1][1]


def trained_turns(rows: Rows) -> Rows:
    """Return a row for each turn that is trained on: the turns before it, and the turn as the
    answer.

    A row of the result has the row id, split key and groups of its conversation. Rows of classes
    are not changed.
    """
    if rows.conversations is None:
        return rows
    indices: list[int] = []
    conversations: list[Conversation] = []
    answers: list[str] = []
    earlier_untrained: list[tuple[int, ...]] = []
    conversations_of_rows = zip(rows.answered_turns, rows.untrained, strict=True)
    for index, (turns, untrained) in enumerate(conversations_of_rows):
        for position, (role, content) in enumerate(turns):
            if role == "assistant" and position not in untrained:
                indices.append(index)
                conversations.append(turns[:position])
                answers.append(content)
                earlier_untrained.append(tuple(at for at in untrained if at < position))
    return replace(
        rows.take(indices),
        texts=tuple(map(text_of, conversations)),
        labels=tuple(answers),
        conversations=tuple(conversations),
        untrained_turns=tuple(earlier_untrained),
    )


def document_keys(rows: Rows) -> list[str]:
    """Return the key of each row's document: its value of `split_by`, or else its normalised text.

    Without `split_by`, the key of a conversation is its text up to the first turn of the user, so
    that the parts of a conversation are one document. If it continues in more than `MAX_BRANCHES`
    different texts up to the next turn of the user, as a greeting does, many conversations begin
    with it, and the key is the text up to the next turn.
    """
    if rows.split_keys is not None:
        return list(rows.split_keys)
    beginnings = list(map(_beginnings, rows.turns))
    branches = defaultdict[str, set[str]](set)
    for text, longer in chain.from_iterable(map(pairwise, beginnings)):
        branches[text].add(longer)
    common = {text for text, continuations in branches.items() if len(continuations) > MAX_BRANCHES}
    return [_first_outside(common, texts) for texts in beginnings]


def _first_outside(common: Set[str], texts: Sequence[str]) -> str:
    """Return the first text that is not common, or else the last text."""
    return next((text for text in texts if text not in common), texts[-1])


def _beginnings(conversation: Conversation) -> list[str]:
    """Return the normalised texts up to each turn of the user; if there is none, the whole text."""
    users = [position for position, (role, _) in enumerate(conversation) if role == "user"]
    ends = users or [len(conversation)]
    return [normalise(text_of(conversation[: position + 1])) for position in ends]


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """Concatenate one or more parts that have the same columns, and are no suites."""

    def column(name: str) -> Any:
        columns = [getattr(rows, name) for rows in parts]
        if columns[0] is None:
            return None
        return tuple(chain.from_iterable(columns))

    groups = {}
    for name in parts[0].groups:
        groups[name] = tuple(chain.from_iterable(rows.groups[name] for rows in parts))
    return Rows(groups=groups, answers=parts[0].answers, **{name: column(name) for name in COLUMNS})


def fingerprint(splits: Splits) -> dict[str, str]:
    """Return the sha256 of each split over all of its columns; it depends on the order of the
    rows."""
    return {name: rows_sha256(rows) for name, rows in splits.items()}


def digest_of(digests: Iterable[str]) -> str:
    """Return the sha256 of a sequence of digests, for rows that are read in parts."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def rows_sha256(rows: Rows) -> str:
    """Return the sha256 of rows over all columns, as in `fingerprint`."""
    columns = {"row_id": rows.row_ids, "text": rows.texts, "label": rows.labels}
    if rows.split_keys is not None:
        columns["split_key"] = rows.split_keys
    if rows.conversations is not None:
        columns["conversation"] = tuple(map(json.dumps, rows.conversations))
    if rows.untrained_turns is not None and any(rows.untrained_turns):
        columns["untrained turns"] = tuple(map(json.dumps, rows.untrained_turns))
    if rows.suite is not None:
        suite = rows.suite
        columns["metric"] = suite.metrics
        columns["counterpart"] = suite.counterparts
        columns["start"] = suite.starts
        columns["options"] = tuple(map(json.dumps, suite.options))
    for name in sorted(rows.groups):
        columns[f"group {name}"] = rows.groups[name]
    return _digest(columns)


def _digest(columns: dict[str, tuple[str, ...]]) -> str:
    digest = hashlib.sha256()
    values = chain.from_iterable(zip(*columns.values(), strict=True))
    for value in chain(columns, values):  # the names make a group differ from a split key
        encoded = value.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))  # makes ("ab", "c") differ from ("a", "bc")
        digest.update(encoded)
    return digest.hexdigest()
