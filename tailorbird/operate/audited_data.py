"""Select audited rows for a re-evaluation, and propose a recipe that trains on audited rows."""

import io
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.config.loader import recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.answers import PatternTimeout, unreadable
from tailorbird.data.fingerprints import Hashes, fingerprints, user_texts
from tailorbird.data.parquet import read_table
from tailorbird.data.pii import is_redacted, redact
from tailorbird.data.rows import Rows, Splits, messages_of
from tailorbird.data.splits import normalise
from tailorbird.data.task_data import recipe_task
from tailorbird.evaluation.trained_rows import NO_ROWS
from tailorbird.monitoring.label_audit import audited_rows, labelled_rows
from tailorbird.monitoring.log_reader import (
    ANSWERS,
    FEEDBACK,
    by_day,
    is_answered,
    key_of,
    read_columns,
)
from tailorbird.monitoring.monitored_tasks import Row
from tailorbird.monitoring.traffic import SHADOW
from tailorbird.registry.draws import draw_secret
from tailorbird.storage.paths import TaskPaths


def usable_rows(
    rows: Rows, splits: Splits, *, evaluated: Set[str] = frozenset(), learned: Hashes = NO_ROWS
) -> tuple[Rows, dict[str, int]]:
    """Return the rows that are in no split, and the number of dropped rows by reason.

    A row is also dropped if its fingerprint is one of `learned`, those of the training rows of the
    compared versions. For chat, a row with a redacted correct answer is dropped: no answer of a
    model is equal to it. A row is also dropped if its text occurs in an earlier row or in a row of
    `evaluated` (ids), which are kept. Texts are compared in the form of the request log: normalised
    and redacted. Conversations are compared without system messages, because an application may add
    one to a question of a training row.
    """
    split_texts = {name: set(_as_logged(split)) for name, split in splits.items()}
    dropped = dict.fromkeys((*split_texts, "trained", "duplicate", "redacted"), 0)
    is_trained = np.isin(fingerprints(user_texts(rows)), learned)
    texts = _as_logged(rows)
    seen = {text for row_id, text in zip(rows.row_ids, texts, strict=True) if row_id in evaluated}
    kept = []
    for index, (row_id, text) in enumerate(zip(rows.row_ids, texts, strict=True)):
        reason = next(
            (name for name, texts_of_split in split_texts.items() if text in texts_of_split), None
        )
        if reason is None and is_trained[index]:
            reason = "trained"
        if reason is None and text in seen and row_id not in evaluated:
            reason = "duplicate"
        if reason is None and not rows.class_labels and is_redacted(rows.labels[index]):
            reason = "redacted"
        seen.add(text)
        if reason is None:
            kept.append(index)
        else:
            dropped[reason] += 1
    return rows.take(np.array(kept, np.int64)), dropped


def _as_logged(rows: Rows) -> list[str]:
    contents = ([content for role, content in turns if role != "system"] for turns in rows.turns)
    return [normalise(redact("\n".join(texts))) for texts in contents]


def corrected_by_feedback(recipe: Recipe, *, since: datetime) -> Rows:
    """Return the logged conversations since a time whose answers clients corrected, with the latest
    correct answer.

    Only feedback of the API key that got the answer counts. A correct answer that the metric cannot
    read is omitted. After one on which the regular expression takes too long, so is all further
    feedback of its key.
    """
    if recipe.serving.request_log is None:
        return labelled_rows(recipe, [])
    log = recipe.serving.request_log.rstrip("/")
    secret = draw_secret(recipe.task_uri)

    def files(kind: str) -> list[str]:
        return [
            uri
            for day, uris in by_day(log, kind).items()
            if day >= since.date().isoformat()
            for uri in uris
        ]

    def key(row: Row) -> int:
        return key_of(row["request_id"], row["row"], caller=row["caller"], secret=secret)

    slow = set[str | None]()

    def is_readable(answer: str, caller: str | None) -> bool:
        try:
            return (
                caller not in slow
                and unreadable([answer], config=recipe.evaluation.answers) is None
            )
        except PatternTimeout:
            slow.add(caller)
            return False

    latest: dict[int, tuple[datetime, str]] = {}
    for uri in files("feedback"):
        for row in read_columns(uri, FEEDBACK).to_pylist():
            answer = row["correct_answer"]
            if answer is not None and is_readable(answer, row["caller"]):
                code = key(row)
                latest[code] = max(latest.get(code, (row["at"], answer)), (row["at"], answer))
    logged: dict[int, Row] = {}
    for uri in files("answers"):
        table = read_columns(uri, ANSWERS)
        for row in table.filter(pa.array(is_answered(table))).to_pylist():
            is_first = row["arm"] != SHADOW and row["text"] is not None and row["at"] >= since
            if is_first and (code := key(row)) in latest:
                logged[code] = row | {"correct_answer": latest[code][1]}
    return labelled_rows(recipe, [logged[code] for code in sorted(logged)])


def training_parts(
    recipe: Recipe, audited: Rows, *, splits: Splits, since: datetime
) -> tuple[dict[str, Rows], str | None]:
    """Return the rows to propose as training data, by suffix of their file, and why corrections are
    left out, if so.

    `audited` are the usable rows of blind audits since a time. For chat, corrections are added: the
    correct answers of scored audits and of feedback. They are no random sample, and clients can
    write any text as feedback, so no row of validation or test may be one. They are left out if
    such rows are split off `data.train`.
    """
    if TASKS[recipe.task].has_classes:
        return {"": audited}, None
    unset = " and ".join(
        f"data.{name}" for name in ("validation", "test") if getattr(recipe.data, name) is None
    )
    if unset:
        return {"": audited}, (
            f"corrections by feedback and scored audits are left out: {unset} is not set, so a "
            f"part of data.train would be tested on; to train on corrections, set {unset} and "
            "re-evaluate"
        )
    rows, _ = usable_rows(audited_rows(recipe, since=since, corrected=True), splits)
    feedback, _ = usable_rows(corrected_by_feedback(recipe, since=since), splits)
    others = [index for index, row_id in enumerate(feedback.row_ids) if row_id not in rows.row_ids]
    return {"": rows, "-feedback": feedback.take(others)}, None


def propose_training(recipe: Recipe, parts: Mapping[str, Rows], *, uri: str) -> str:
    """Write parts of rows as training data and, under `uri`, a recipe that also trains on them;
    return its URI.

    Each part is a file of its own, by the suffix of its name, so that it can be omitted; an empty
    part is not written. The data have the columns and types of the recipe's first training file; a
    group value that does not fit its column's type becomes null. The `split_by` values are new:
    rows with one split key share a value, the id of their first row or, in an integer column, a
    negative number. If the columns are a prompt and a completion, a conversation with more than one
    turn before the answer is omitted.
    """
    data = recipe.data
    name = uri.rpartition("/")[2]
    schema = read_table(data.train_uris[0], columns=recipe_task(recipe).columns(data)).schema
    written = []
    for suffix, rows in parts.items():
        if recipe.input_column != data.messages:
            rows = rows.take([row for row, turns in enumerate(rows.turns) if len(turns) == 1])
        if len(rows):
            written.append(TaskPaths(recipe.task_uri).audited_rows(f"{name}{suffix}"))
            storage.write_bytes(written[-1], _training_file(recipe, rows, schema=schema))
    proposed = recipe.model_copy(
        update={"data": data.model_copy(update={"train": (*data.train_uris, *written)})}
    )
    storage.write_bytes(f"{uri}/recipe.yaml", recipe_text(proposed).encode())
    return f"{uri}/recipe.yaml"


def _training_file(recipe: Recipe, rows: Rows, *, schema: pa.Schema) -> bytes:
    """Return the rows as Parquet with the columns and types of `schema`."""
    data = recipe.data
    values: dict[str, Sequence[Any]] = {**rows.groups, recipe.input_column: rows.texts}
    if recipe.input_column == data.messages:
        values[recipe.input_column] = list(map(messages_of, rows.answered_turns))
    else:
        values[getattr(data, TASKS[recipe.task].label_field)] = rows.labels
    if data.split_by is not None:
        is_integer = pa.types.is_integer(schema.field(data.split_by).type)
        keys = rows.split_keys or rows.row_ids
        new_keys = dict[str, str]()
        for index, key in enumerate(keys):
            new_keys.setdefault(key, str(-1 - index) if is_integer else rows.row_ids[index])
        values[data.split_by] = tuple(new_keys[key] for key in keys)
    columns = {
        name: pa.array(values[name], schema.field(name).type)
        if name == data.messages
        else _cast(values[name], to=schema.field(name).type)
        for name in schema.names
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _cast(values: Sequence[str], *, to: pa.DataType) -> pa.Array:
    """Convert texts to a type; a text that is not a valid value becomes null."""

    def scalar(value: str) -> object:
        try:
            return (
                pa.scalar(value).cast(to.value_type if pa.types.is_dictionary(to) else to).as_py()
            )
        except pa.ArrowInvalid:
            return None

    return pa.array([scalar(value) for value in values], to)
