"""Infer the columns of a sample that a recipe reads, and give a reason for each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tailorbird.config.task_rules import TaskName
from tailorbird.data.profiling.sample import Column, Sample
from tailorbird.data.rows import DataError

TEXTS = (
    "text",
    "sentence",
    "content",
    "body",
    "message",
    "utterance",
    "description",
    "abstract",
    "term",
    "question",
)
LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "intent",
    "target",
    "topic",
    "chapter",
    "sentiment",
    "decision",
)
PROMPTS = ("prompt", "question", "instruction", "input")
ANSWERS = ("completion", "answer", "response", "output")
GROUPS = (
    "group",
    "sex",
    "gender",
    "language",
    "lang",
    "age",
    "region",
    "country",
    "source",
    "channel",
    "ethnicity",
)
IDENTITIES = (
    "id",
    "patient",
    "document",
    "doc",
    "user",
    "customer",
    "case",
    "focus",
    "subject",
    "author",
    "template",
)
MAX_CLASSES = 1000
MAX_GROUP_VALUES = 20
MAX_GROUPS = 4
MIN_KEYS = 20  # minimum number of distinct values of a column to split by
ANSWER_WORDS = 2.0  # minimum mean number of words of a column with answers instead of labels


@dataclass(frozen=True)
class ColumnRole:
    """A column and the reason for its role."""

    column: Column
    reason: str

    @property
    def name(self) -> str:
        return self.column.name


@dataclass(frozen=True)
class ColumnRoles:
    """Roles of the columns of a sample: `text` and `label` for classification, `prompt` to
    `messages` for chat."""

    text: ColumnRole | None = None
    label: ColumnRole | None = None
    prompt: ColumnRole | None = None
    completion: ColumnRole | None = None
    messages: ColumnRole | None = None
    groups: tuple[Column, ...] = ()
    keys: tuple[ColumnRole, ...] = ()  # candidates for `split_by`, the most likely first

    @property
    def task(self) -> TaskName:
        if self.label is None:
            return "chat"
        return "classification"


def infer_column_roles(
    sample: Sample, *, text: str | None = None, label: str | None = None
) -> ColumnRoles:
    """Infer the task and its columns. `text` and `label` are column names that imply
    classification.

    Raises DataError if the sample has neither conversations nor a text with a label.
    """
    inputs = _input_roles(sample, text=text, label=label)
    roles = (inputs.text, inputs.label, inputs.prompt, inputs.completion, inputs.messages)
    used = [role.name for role in roles if role]
    rest = [
        column for column in sample.columns if column.name not in used and column.kind != "messages"
    ]
    groups = list(filter(_is_group, rest))
    groups.sort(key=lambda column: (not _name_matches(column, GROUPS), len(column.counts)))
    groups = groups[:MAX_GROUPS]
    keys = [column for column in rest if _is_key(column, num_rows=sample.num_sampled)]
    keys = [column for column in keys if column not in groups]
    keys.sort(key=lambda column: (not _name_matches(column, IDENTITIES), -len(column.counts)))
    return replace(
        inputs,
        groups=tuple(groups),
        keys=tuple(ColumnRole(each, f"{len(each.counts):,} values") for each in keys),
    )


def _input_roles(sample: Sample, *, text: str | None, label: str | None) -> ColumnRoles:
    if text is None and label is None:
        messages = next((column for column in sample.columns if column.kind == "messages"), None)
        if messages is not None:
            return ColumnRoles(
                messages=ColumnRole(messages, "its values are lists of {role, content}")
            )
        prompt = _column_named(sample, PROMPTS)
        answer = _column_named(sample, ANSWERS)
        labelled = _column_named(sample, LABELS) and _column_named(sample, TEXTS)
        if prompt and answer and not labelled and answer.mean_words >= ANSWER_WORDS:
            return ColumnRoles(
                prompt=ColumnRole(prompt, "chosen by its name"),
                completion=ColumnRole(answer, "chosen by its name"),
            )
    text_role = _text(sample, text)
    return ColumnRoles(text=text_role, label=_label(sample, label, text=text_role.name))


def _text(sample: Sample, name: str | None) -> ColumnRole:
    if name is not None:
        return ColumnRole(_required(sample, name, kinds=("string",)), "set with --text")
    named = _column_named(sample, TEXTS)
    if named is not None:
        return ColumnRole(named, "chosen by its name")
    strings = [
        column for column in sample.columns if column.kind == "string" and column.mean_words > 1
    ]
    if not strings:
        raise DataError(
            f"{sample.uri}: no column looks like a text; it has {_all(sample)}. Name one with "
            "--text"
        )
    longest = max(strings, key=lambda column: column.mean_words)
    return ColumnRole(longest, "has the most words per row")


def _label(sample: Sample, name: str | None, *, text: str) -> ColumnRole:
    if name is not None:
        return ColumnRole(_required(sample, name, kinds=("string", "integer")), "set with --label")
    most = min(MAX_CLASSES, sample.num_sampled // 2)
    fitting = []
    for column in sample.columns:
        is_label_kind = column.kind in ("string", "integer") and column.name != text
        if is_label_kind and 2 <= len(column.counts) <= most:
            fitting.append(column)
    named = _first_named(fitting, LABELS)
    if named is not None:
        return ColumnRole(named, "chosen by its name")
    likely = [column for column in fitting if not column.num_null]
    likely = [column for column in likely if not _name_matches(column, (*GROUPS, *IDENTITIES))]
    if not likely:
        raise DataError(
            f"{sample.uri}: no column looks like a label; it has {_all(sample)}. Name one with "
            "--label"
        )
    column = max(likely, key=lambda column: len(column.counts))
    return ColumnRole(column, "has the most distinct values; check that it is the label")


def _required(sample: Sample, name: str, *, kinds: Sequence[str]) -> Column:
    column = sample.column(name)
    if column is None or column.kind not in kinds:
        raise DataError(
            f"{sample.uri} has no column {name!r} of the type {' or '.join(kinds)}; it has "
            f"{_all(sample)}"
        )
    return column


def _column_named(sample: Sample, names: Sequence[str]) -> Column | None:
    """Return the string column with the first of these names that exists."""
    strings = [column for column in sample.columns if column.kind == "string"]
    return _first_named(strings, names)


def _first_named(columns: Sequence[Column], names: Sequence[str]) -> Column | None:
    by_name = {column.name.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _name_matches(column: Column, names: tuple[str, ...]) -> bool:
    """Return True if a part of the column's name is one of these names, as in `patient_id`."""
    parts = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.name).lower())
    return any(part.startswith(names) if len(part) > 3 else part in names for part in parts)


def _is_group(column: Column) -> bool:
    few = 2 <= len(column.counts) <= MAX_GROUP_VALUES
    return (
        few
        and column.kind in ("string", "boolean", "integer")
        and column.mean_words <= ANSWER_WORDS
    )


def _is_key(column: Column, *, num_rows: int) -> bool:
    several = MIN_KEYS <= len(column.counts) <= 0.95 * num_rows
    known = _name_matches(column, IDENTITIES) or len(column.counts) >= 0.1 * num_rows
    return several and known and not column.num_null


def _all(sample: Sample) -> str:
    columns = [f"{column.name} ({column.kind})" for column in sample.columns]
    return ", ".join((*columns, *sample.unusable)) or "no columns"
