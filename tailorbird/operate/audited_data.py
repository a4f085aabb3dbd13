"""Select audited rows for a re-evaluation, and propose a recipe that trains on audited rows."""

import io
from collections.abc import Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.config.loader import recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.data.parquet import read_table
from tailorbird.data.pii import redact
from tailorbird.data.rows import Rows, Splits
from tailorbird.data.splits import normalise
from tailorbird.data.tasks import data_task
from tailorbird.storage.paths import TaskPaths


def usable_rows(rows: Rows, splits: Splits, *, evaluated: Set[str] = frozenset()) -> tuple[Rows, dict[str, int]]:
    """Return the rows that are in no split, and the number of dropped rows by reason.

    A row is also dropped if its text occurs in an earlier row or in a row of `evaluated` (ids), which are kept. Texts
    are compared in the form of the request log: normalised and redacted.
    """
    split_texts = {name: {_as_logged(text) for text in split.texts} for name, split in splits.items()}
    dropped = dict.fromkeys((*split_texts, "duplicate"), 0)
    texts = [_as_logged(text) for text in rows.texts]
    seen = {text for row_id, text in zip(rows.row_ids, texts, strict=True) if row_id in evaluated}
    kept = []
    for index, (row_id, text) in enumerate(zip(rows.row_ids, texts, strict=True)):
        reason = next((name for name, texts_of_split in split_texts.items() if text in texts_of_split), None)
        if reason is None and text in seen and row_id not in evaluated:
            reason = "duplicate"
        seen.add(text)
        if reason is None:
            kept.append(index)
        else:
            dropped[reason] += 1
    return rows.take(np.array(kept, np.int64)), dropped


def _as_logged(text: str) -> str:
    return normalise(redact(text))


def propose_training(recipe: Recipe, rows: Rows, *, uri: str) -> str:
    """Write the rows as training data and, under `uri`, a recipe that also trains on them; return the recipe's URI.

    The data have the columns and types of the recipe's first training file; a group value that does not fit its
    column's type becomes null. The `split_by` values are new: rows with one split key share a value, the id of their
    first row or, in an integer column, a negative number.
    """
    data, name = recipe.data, uri.rpartition("/")[2]
    schema = read_table(data.train_uris[0], columns=data_task(recipe.task).columns(data)).schema
    values = {data.text: rows.texts, data.label: rows.labels, **rows.groups}
    if data.split_by is not None:
        is_integer = pa.types.is_integer(schema.field(data.split_by).type)
        keys, new_keys = rows.split_keys or rows.row_ids, dict[str, str]()
        for index, key in enumerate(keys):
            new_keys.setdefault(key, str(-1 - index) if is_integer else rows.row_ids[index])
        values[data.split_by] = tuple(new_keys[key] for key in keys)
    columns = {name: _cast(values[name], to=schema.field(name).type) for name in schema.names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    audited = TaskPaths(recipe.task_uri).audited_rows(name)
    storage.write_bytes(audited, sink.getvalue())
    proposed = recipe.model_copy(update={"data": data.model_copy(update={"train": (*data.train_uris, audited)})})
    storage.write_bytes(f"{uri}/recipe.yaml", recipe_text(proposed).encode())
    return f"{uri}/recipe.yaml"


def _cast(values: Sequence[str], *, to: pa.DataType) -> pa.Array:
    """Convert texts to a type; a text that is not a valid value becomes null."""

    def scalar(value: str) -> object:
        try:
            return pa.scalar(value).cast(to.value_type if pa.types.is_dictionary(to) else to).as_py()
        except pa.ArrowInvalid:
            return None

    return pa.array([scalar(value) for value in values], to)
