"""Labels for texts drawn by lot: out as Parquet for people to label, blind, and back in as rows to judge by."""

import hashlib
import heapq
import io
import json
from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.pii import redacted
from tailorbird.data.rows import Rows
from tailorbird.monitoring.daily_report import audits_of, number_of
from tailorbird.monitoring.log_reader import (
    ANSWERS,
    CANARY,
    CHAMPION,
    TrafficError,
    files_of,
    key_of,
    read_columns,
    value_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("request_id", "row", "at", "text", "attributes", "label")


class AuditError(ValueError):
    """An audit that cannot be drawn or taken back; the message says what to do."""


def days_between(given: str) -> list[date]:
    """The days of `YYYY-MM-DD:YYYY-MM-DD`, both included; AuditError for anything else."""
    try:
        first, last = (date.fromisoformat(part) for part in given.split(":"))
    except ValueError:
        raise AuditError(f"days are {given!r}; give the first and the last as YYYY-MM-DD:YYYY-MM-DD") from None
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def export(
    recipe: Recipe, *, digest: str, trial: str | None = None, days: Sequence[date], num_rows: int, to: str
) -> int:
    """Draws answers from these days by lot, and writes them for labelling; how many.

    They are the champion's (`digest`) and, as often as it answered in the champion's stead, those of the version on
    trial. A shadow needs none of its own: it answers the champion's texts.

    `to` is an S3 or file URI. The Parquet has `request_id`, `row`, `at`, `text` (empty where the log keeps none),
    `attributes` and an empty `label`: what the model answered is left out, so that nobody is led by it. What is drawn
    depends on the request ids alone: the same days give the same rows, and no audit's label of before is asked again.
    Held are the rows that are drawn so far, and the keys of those that were audited.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    log = _log_of(recipe)
    if num_rows < 1:
        raise AuditError(f"{num_rows} rows cannot be drawn; give 1 or more")
    audited = {key for uri in audits_of(recipe.task_uri) for key in _keys(read_columns(uri, COLUMNS)).tolist()}
    arms = {(CHAMPION, digest), (CANARY, trial)}
    drawn: dict[int, dict[str, Any]] = {}
    largest: list[int] = []  # a heap of the drawn keys, negative: the first is the one to give up
    for uri in files_of(log, "answers", [day.isoformat() for day in days]):
        for answer in read_columns(uri, ANSWERS).to_pylist():
            ours = (answer["arm"], answer["digest"]) in arms and answer["label"] is not None
            key = key_of(answer["request_id"], answer["row"])
            if not ours or key in audited or key in drawn or (len(drawn) >= num_rows and key > -largest[0]):
                continue
            drawn[key] = {name: answer.get(name) for name in COLUMNS} | {"label": None}
            heapq.heappush(largest, -key)
            if len(drawn) > num_rows:
                del drawn[-heapq.heappop(largest)]
    if not drawn:
        raise AuditError(f"no answer of the champion in {log} on these days that was not audited; name other days")
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([drawn[key] for key in sorted(drawn)], schema=_schema()), sink)
    storage.write_bytes(to, sink.getvalue())
    return len(drawn)


def take_in(recipe: Recipe, uri: str, *, classes: Sequence[str]) -> tuple[str, int]:
    """Keeps the labels of an exported file that people filled in; where they lie, and how many there are.

    Rows without a label are left out. Files are numbered in the order in which they came, for of two labels of one text
    the later stands; one that is the same as the last is kept once. Raises AuditError for a label that is no class, or
    a file that was not exported; `label` and, where the log keeps none, `text` are what people fill in, so texts are
    redacted here too.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = read_columns(uri, COLUMNS)
    except TrafficError as error:
        raise AuditError(f"{error}; give a file that `tailorbird audit export` wrote") from None
    rows = [row for row in table.to_pylist() if row["label"] is not None and str(row["label"]).strip()]
    unknown = sorted({str(row["label"]) for row in rows} - set(classes))
    if unknown or not rows:
        told = f"labels that are no class: {', '.join(unknown[:5])}" if unknown else "no label at all"
        raise AuditError(f"{uri} has {told}; the classes are {', '.join(classes[:10])}{' ...' * (len(classes) > 10)}")
    rows = [row | {"text": row["text"] and redacted(str(row["text"]))} for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), sink)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()[:16]
    newest = next(reversed(audits_of(recipe.task_uri)), "")
    if newest.endswith(f"{digest}.parquet"):
        return newest, len(rows)
    kept = f"{recipe.task_uri}/audits/{number_of(newest) + 1:06d}-{digest}.parquet"
    storage.write_bytes(kept, sink.getvalue())
    return kept, len(rows)


def audited_rows(recipe: Recipe) -> Rows:
    """Every audited text with its label, the later word on one that was labelled twice; groups by its attributes."""
    found: dict[int, dict[str, Any]] = {}
    for uri in audits_of(recipe.task_uri):
        for row in read_columns(uri, COLUMNS).to_pylist():
            if row["text"]:
                found[key_of(row["request_id"], row["row"])] = row
    rows = [found[key] for key in sorted(found)]
    given = [json.loads(row["attributes"]) if row["attributes"] else {} for row in rows]
    return Rows(
        row_ids=tuple(f"{row['request_id']}:{row['row']}" for row in rows),
        texts=tuple(row["text"] for row in rows),
        labels=tuple(row["label"] for row in rows),
        groups={name: tuple(value_of(one, name) for one in given) for name in recipe.data.groups},
    )


def _log_of(recipe: Recipe) -> str:
    if recipe.serving.request_log is None:
        raise AuditError("nothing can be drawn without a log: give serving.request_log a prefix, and serve again")
    return recipe.serving.request_log.rstrip("/")


def _keys(table: "pa.Table") -> np.ndarray:
    pairs = zip(table["request_id"].to_pylist(), table["row"].to_pylist(), strict=True)
    return np.array([key_of(request_id, row) for request_id, row in pairs], np.uint64)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    types = {"row": pa.int32(), "at": pa.timestamp("us", tz="UTC")}
    return pa.schema({name: types.get(name, pa.string()) for name in COLUMNS})
