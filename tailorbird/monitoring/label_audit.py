"""Label audits: export a random sample of answers for blind labelling, and import the labels.

For chat, people either write the correct answer without seeing the model's, or score the model's
answer from 0 to 1.
"""

import hashlib
import heapq
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime
from operator import itemgetter

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.conversations import logged_conversation
from tailorbird.data.rows import Rows, text_of
from tailorbird.monitoring.log_reader import (
    ANSWERS,
    TrafficError,
    by_day,
    is_answered,
    read_columns,
    row_key,
    value_of,
)
from tailorbird.monitoring.log_windows import files_between, span
from tailorbird.monitoring.monitored_tasks import COLUMNS, MONITORED_TASKS, AuditError, Row
from tailorbird.monitoring.request_log import require_request_log
from tailorbird.monitoring.traffic import CHAMPION
from tailorbird.registry.draws import draw_secret
from tailorbird.storage.paths import TaskPaths

STORED_COLUMNS = (*COLUMNS, "context", "score", "correct_answer")
FILLED_IN = {"label", "score", "correct_answer"}


def parse_days(days: str) -> list[date]:
    """Return the days from first to last of `YYYY-MM-DD:YYYY-MM-DD`; raise AuditError for anything
    else."""
    with suppress(ValueError):
        first, last = map(date.fromisoformat, days.split(":"))
        if first <= last:
            return list(span(first, last))
    raise AuditError(
        f"--days is {days!r}; give the first and the last day as YYYY-MM-DD:YYYY-MM-DD"
    )


def export_answers(
    recipe: Recipe,
    *,
    digest: str,
    days: Sequence[date],
    num_rows: int,
    to: str,
    with_answers: bool = False,
) -> int:
    """Write a random sample of these days' answers for labelling; return the number of rows.

    Draws answers of the champion (`digest`). A shadow needs no audit of its own, because it answers
    the champion's texts. Every row has the same chance, whatever its client sends: rows are drawn
    by an HMAC of the id that the replica made. The same days give the same rows, and audited rows
    are not drawn again. The Parquet file at `to`, an S3 or file URI, has the `columns` or
    `scored_columns` of the task: `text` is empty without serving.log_texts, and labels are empty.
    Only `with_answers` (chat) does it have the model's answer, which would bias labels; no column
    names the version. Memory holds the drawn rows, one file and the keys of audited rows.
    """
    if num_rows < 1:
        raise AuditError(f"--rows is {num_rows}; it must be 1 or more")
    log = require_request_log(recipe).rstrip("/")
    task = MONITORED_TASKS[recipe.task]
    if task.needs_texts and not recipe.serving.log_texts:
        raise AuditError(
            "serving.log_texts is not set, so there are no conversations to audit; set it and "
            "serve again"
        )
    columns = task.scored_columns if with_answers else task.columns
    if columns is None:
        raise AuditError(
            "--with-answers is for chat: labels of classes are given without seeing the model's "
            "answer"
        )
    secret = draw_secret(recipe.task_uri)
    audited = {row_key(row, secret) for row in _audit_rows(recipe.task_uri)}
    drawn: dict[int, Row] = {}  # by key
    for uri in files_between(by_day(log, "answers"), days[0], days[-1]):
        table = read_columns(uri, ANSWERS)
        for answer in table.filter(pa.array(is_answered(table))).to_pylist():
            if (answer["arm"], answer["digest"]) != (CHAMPION, digest):
                continue
            if task.needs_texts and answer["text"] is None:
                continue
            key = row_key(answer, secret)
            if key not in audited:
                drawn[key] = answer | dict.fromkeys(FILLED_IN)
        drawn = dict(heapq.nsmallest(num_rows, drawn.items(), key=itemgetter(0)))
    if not drawn:
        raise AuditError(
            f"{log} has no unaudited answer of the champion on these days; choose other days"
        )
    rows = [drawn[key] for key in sorted(drawn)]
    storage.write_bytes(to, _to_parquet(rows, columns=columns))
    return len(drawn)


def import_labels(recipe: Recipe, uri: str, *, classes: Sequence[str]) -> tuple[str, int]:
    """Store the labels of an exported file; return the URI and the number of labels.

    Rows without a label are omitted. Files are numbered in order of import, because the latest
    label of a text counts. A file equal to the last one is not stored again. Texts are redacted,
    because people fill in `text` if the log has no texts. Raises AuditError for a label that is not
    a class, for a labelled row whose id or time is missing, and for a file that was not exported.
    For chat, see `monitored_tasks._chat_labels`.
    """
    task = MONITORED_TASKS[recipe.task]
    try:
        table = read_columns(uri, task.scored_columns or task.columns)
    except TrafficError as error:
        raise AuditError(f"{error}; give a file written by `tailorbird audit export`") from None
    rows = task.require_labels(uri, table.to_pylist(), recipe, classes)
    damaged = [row for row in rows if None in (row["request_id"], row["row"], row["at"])]
    if damaged:
        raise AuditError(
            f"{uri} has {len(damaged)} labelled rows without request_id, row or at; fill in the "
            "empty columns only, and keep the other columns"
        )
    content = _to_parquet(rows, columns=STORED_COLUMNS)
    digest = hashlib.sha256(content).hexdigest()[:16]
    audits = audit_files(recipe.task_uri)
    if audits and audits[-1].endswith(f"{digest}.parquet"):
        return audits[-1], len(rows)
    stored = TaskPaths(recipe.task_uri).audit(len(audits) + 1, digest)
    storage.write_bytes(stored, content)
    return stored, len(rows)


def audited_rows(recipe: Recipe, *, since: datetime) -> Rows:
    """Return the audited texts of answers since a time, with their latest labels, as rows of data.

    For chat, these are the correct answers that people wrote without seeing the model's: corrected
    answers are no random sample. Groups are read from the attributes. The split key is
    the request, because the answers to one request are dependent. There are no split keys if all
    requests are different.
    """
    label = MONITORED_TASKS[recipe.task].label_column
    latest = {}
    for row in _audit_rows(recipe.task_uri):
        if row["text"] and row[label] and row["score"] is None and row["at"] >= since:
            latest[row["request_id"], row["row"]] = row
    rows = [latest[key] for key in sorted(latest)]
    requests = tuple(row["request_id"] for row in rows)
    turns = tuple(logged_conversation(row["context"], row["text"]) for row in rows)
    attributes = [json.loads(row["attributes"] or "{}") for row in rows]
    groups = {}
    for name in recipe.data.groups:
        groups[name] = tuple(value_of(values, name) for values in attributes)
    return Rows(
        row_ids=tuple(f"{row['request_id']}:{row['row']}" for row in rows),
        texts=tuple(map(text_of, turns)),
        labels=tuple(row[label] for row in rows),
        split_keys=requests if len(set(requests)) < len(requests) else None,
        groups=groups,
        conversations=None if TASKS[recipe.task].has_classes else turns,
        answers=recipe.evaluation.answers,
    )


def audit_files(task_uri: str) -> list[str]:
    """Return the files of imported audits in order of import."""
    uris = storage.list_files(TaskPaths(task_uri).audits, missing_ok=True)
    return [uri for uri in uris if uri.endswith(".parquet")]


def _audit_rows(task_uri: str) -> Iterator[Row]:
    for uri in audit_files(task_uri):
        yield from read_columns(uri, STORED_COLUMNS).to_pylist()


def _to_parquet(rows: Sequence[Row], *, columns: Sequence[str]) -> bytes:
    types = {"row": pa.int32(), "at": pa.timestamp("us", tz="UTC"), "score": pa.float32()}
    schema = pa.schema({name: types.get(name, pa.string()) for name in columns})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()
