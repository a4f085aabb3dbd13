"""Label audits: draw answers at random as Parquet for people to label blind, and import their labels."""

import hashlib
import heapq
import io
import json
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.pii import redact
from tailorbird.data.rows import Rows
from tailorbird.monitoring.log_reader import ANSWERS, TrafficError, files_of, key_of, read_columns, value_of
from tailorbird.monitoring.traffic import CANARY, CHAMPION
from tailorbird.storage.paths import TaskPaths

COLUMNS = ("request_id", "row", "at", "text", "attributes", "label")
Row = dict[str, Any]  # of the request log or of an audit, by column


class AuditError(ValueError):
    """An audit that cannot be exported or imported; the message says what to do."""


def parse_days(days: str) -> list[date]:
    """Return the days of `YYYY-MM-DD:YYYY-MM-DD`, both included; raise AuditError for anything else."""
    try:
        first, last = (date.fromisoformat(part) for part in days.split(":"))
    except ValueError:
        raise AuditError(f"days are {days!r}; give the first and the last as YYYY-MM-DD:YYYY-MM-DD") from None
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def export_answers(
    recipe: Recipe, *, digest: str, challenger: str | None = None, days: Sequence[date], num_rows: int, to: str
) -> int:
    """Draw answers of these days at random and write them for labelling; return how many.

    Draws answers of the champion (`digest`), and of the challenger's canary in proportion to its traffic. A shadow
    needs no audit of its own: it answers the champion's texts. The draw depends on the request ids alone: the same days
    give the same rows, and audited rows are not drawn again. The Parquet at `to`, an S3 or file URI, has `request_id`,
    `row`, `at`, `text` (empty if the log keeps none), `attributes` and an empty `label`; the model's answer is left
    out, so that it does not bias the labels. Memory holds the rows drawn so far, and the keys of audited rows.
    """
    if num_rows < 1:
        raise AuditError(f"{num_rows} rows cannot be drawn; give 1 or more")
    if recipe.serving.request_log is None:
        raise AuditError("nothing can be drawn without a log: give serving.request_log a prefix, and serve again")
    log = recipe.serving.request_log.rstrip("/")
    audited = {_key(row) for row in _audit_rows(recipe.task_uri)}
    arms = {(CHAMPION, digest), (CANARY, challenger)}
    drawn: dict[int, Row] = {}
    largest: list[int] = []  # a heap of the drawn keys, negated: the first is the largest key
    for uri in files_of(log, "answers", [day.isoformat() for day in days]):
        for answer in read_columns(uri, ANSWERS).to_pylist():
            eligible = (answer["arm"], answer["digest"]) in arms and answer["label"] is not None
            key = _key(answer)
            if not eligible or key in audited or key in drawn or (len(drawn) >= num_rows and key > -largest[0]):
                continue
            drawn[key] = {name: answer.get(name) for name in COLUMNS} | {"label": None}
            heapq.heappush(largest, -key)
            if len(drawn) > num_rows:
                del drawn[-heapq.heappop(largest)]
    if not drawn:
        raise AuditError(f"no answer of the champion in {log} on these days that was not audited; name other days")
    storage.write_bytes(to, _to_parquet([drawn[key] for key in sorted(drawn)]))
    return len(drawn)


def import_labels(recipe: Recipe, uri: str, *, classes: Sequence[str]) -> tuple[str, int]:
    """Store the labels that people filled into an exported file; return the URI and the number of labels.

    Rows without a label are left out. Files are numbered in order of import, because the later of two labels of a text
    counts; a file equal to the last one is stored once. Raises AuditError for a label that is no class, or a file that
    was not exported. Texts are redacted here too: where the log keeps none, people fill in `text` as well.
    """
    try:
        table = read_columns(uri, COLUMNS)
    except TrafficError as error:
        raise AuditError(f"{error}; give a file that `tailorbird audit export` wrote") from None
    rows = [row for row in table.to_pylist() if row["label"] is not None and str(row["label"]).strip()]
    unknown = sorted({str(row["label"]) for row in rows} - set(classes))
    if unknown or not rows:
        fault = f"labels that are no class: {', '.join(unknown[:5])}" if unknown else "no label at all"
        raise AuditError(f"{uri} has {fault}; the classes are {', '.join(classes[:10])}{' ...' * (len(classes) > 10)}")
    content = _to_parquet([row | {"text": row["text"] and redact(str(row["text"]))} for row in rows])
    digest = hashlib.sha256(content).hexdigest()[:16]
    audits = audit_files(recipe.task_uri)
    if audits and audits[-1].endswith(f"{digest}.parquet"):
        return audits[-1], len(rows)
    stored = TaskPaths(recipe.task_uri).audit(len(audits) + 1, digest)
    storage.write_bytes(stored, content)
    return stored, len(rows)


def audited_rows(recipe: Recipe) -> Rows:
    """Return every audited text with its latest label; groups come from its attributes."""
    rows = {_key(row): row for row in _audit_rows(recipe.task_uri) if row["text"]}
    ordered = [rows[key] for key in sorted(rows)]
    attributes = [json.loads(row["attributes"]) if row["attributes"] else {} for row in ordered]
    return Rows(
        row_ids=tuple(f"{row['request_id']}:{row['row']}" for row in ordered),
        texts=tuple(row["text"] for row in ordered),
        labels=tuple(row["label"] for row in ordered),
        groups={name: tuple(value_of(values, name) for values in attributes) for name in recipe.data.groups},
    )


def audit_files(task_uri: str) -> list[str]:
    """Return the imported audits' files in order of import."""
    uris = storage.list_files(TaskPaths(task_uri).audits, missing_ok=True)
    return [uri for uri in uris if uri.endswith(".parquet")]


def _audit_rows(task_uri: str) -> Iterator[Row]:
    for uri in audit_files(task_uri):
        yield from read_columns(uri, COLUMNS).to_pylist()


def _key(row: Row) -> int:
    return key_of(row["request_id"], row["row"])


def _to_parquet(rows: Sequence[Row]) -> bytes:
    types = {"row": pa.int32(), "at": pa.timestamp("us", tz="UTC")}
    schema = pa.schema({name: types.get(name, pa.string()) for name in COLUMNS})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()
