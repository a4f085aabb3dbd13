"""Select audited rows for a re-evaluation, and propose a recipe that trains on audited rows."""

import io
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.config.loader import recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.fingerprints import Hashes, fingerprints, user_texts
from tailorbird.data.parquet import read_table
from tailorbird.data.pii import is_redacted, redact
from tailorbird.data.rows import Rows, Splits, messages_of
from tailorbird.data.splits import normalise
from tailorbird.data.task_data import recipe_task
from tailorbird.evaluation.trained_rows import NO_ROWS
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
    usable = []
    for index, (row_id, text) in enumerate(zip(rows.row_ids, texts, strict=True)):
        reasons = {name: text in in_split for name, in_split in split_texts.items()}
        reasons["trained"] = bool(is_trained[index])
        reasons["duplicate"] = text in seen and row_id not in evaluated
        reasons["redacted"] = not rows.class_labels and is_redacted(rows.labels[index])
        seen.add(text)
        reason = next((name for name, applies in reasons.items() if applies), None)
        if reason is None:
            usable.append(index)
        else:
            dropped[reason] += 1
    return rows.take(np.array(usable, np.int64)), dropped


def _as_logged(rows: Rows) -> list[str]:
    contents = ([content for role, content in turns if role != "system"] for turns in rows.turns)
    return [normalise(redact("\n".join(texts))) for texts in contents]


def propose_training(recipe: Recipe, rows: Rows, *, uri: str) -> str:
    """Write audited rows as training data and, under `uri`, a recipe that also trains on them;
    return its URI.

    The data have the columns and types of the recipe's first training file; a group value that does
    not fit its column's type becomes null. The `split_by` values are new: rows with one split key
    share a value, the id of their first row or, in an integer column, a negative number. If the
    columns are a prompt and a completion, a conversation with more than one turn before the answer
    is omitted.
    """
    data = recipe.data
    schema = read_table(data.train_uris[0], columns=recipe_task(recipe).columns(data)).schema
    if recipe.input_column != data.messages:
        rows = rows.take([row for row, turns in enumerate(rows.turns) if len(turns) == 1])
    train = data.train_uris
    if len(rows):
        written = TaskPaths(recipe.task_uri).audited_rows(uri.rpartition("/")[2])
        storage.write_bytes(written, _training_file(recipe, rows, schema=schema))
        train = (*train, written)
    proposed = recipe.model_copy(update={"data": data.model_copy(update={"train": train})})
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
    columns = {}
    for name in schema.names:
        kind = schema.field(name).type
        if name == data.messages:
            columns[name] = pa.array(values[name], kind)
        else:
            columns[name] = _cast(values[name], to=kind)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _cast(values: Sequence[str], *, to: pa.DataType) -> pa.Array:
    """Convert texts to a type; a text that is not a valid value becomes null."""
    if pa.types.is_dictionary(to):
        to = to.value_type

    def scalar(value: str) -> object:
        try:
            return pa.scalar(value).cast(to).as_py()
        except pa.ArrowInvalid:
            return None

    return pa.array(list(map(scalar, values)), to)
