"""Rows of the request log: columns, hashed subjects, optional texts, and files by day."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.request_log.log import RequestLog
from serving.request_log.schema import FeedbackEntry, LogEntry, top_classes
from serving.request_log.write_ahead_log import encode_row

KEY = b"k" * 32
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def entry(number: int, *, at: datetime = NOON, **fields: Any) -> LogEntry:
    values: dict[str, Any] = {
        "request_id": f"r{number}",
        "at": at,
        "model": "m",
        "version": "v",
        "digest": "d",
        "row": 0,
        "latency_ms": 250.0,
    }
    return LogEntry(**values | fields)


def written(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("answers/day=*/*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def counted_bytes(entry: LogEntry) -> int:
    """Return the size that the writer counts for a row with these fields."""
    with TemporaryDirectory() as folder:
        return len(encode_row(request_log(Path(folder))._row(entry)))


def request_log(folder: Path, *, key: bytes | None = None, texts: bool = False) -> RequestLog:
    return RequestLog(folder.as_uri(), subject_key=key, texts=texts, wal_folder=folder / "wal")


def run_log(
    folder: Path, work: Callable[[RequestLog], Awaitable[object]], **options: Any
) -> RequestLog:
    """Return a request log after some work with it and its close."""

    async def run() -> RequestLog:
        log = request_log(folder, **options)
        await work(log)
        await log.close()
        return log

    return asyncio.run(run())


def log_and_read(folder: Path, entries: Sequence[LogEntry], **options: Any) -> list[Any]:
    async def work(log: RequestLog) -> None:
        log.answers.add(entries)

    run_log(folder, work, **options)
    return written(folder)


def test_a_row_has_the_answer_and_a_hash_of_the_subject(tmp_path: Path) -> None:
    scores = np.array([0.1, 0.6, 0.05, 0.25], dtype=np.float32)
    fields: dict[str, Any] = {
        "row": 3,
        "label": "b",
        "answered_by": "second",
        "fallback": False,
        "route": "classify",
        "caller": "app",
    }
    top = top_classes(("a", "b", "c", "d"), scores)
    answer = entry(1, subject="patient 7", attributes={"sex": "f"}, score=0.6, top=top, **fields)
    (row,) = log_and_read(tmp_path, [answer], key=KEY)
    expected = fields | {"request_id": "r1", "at": NOON, "latency_ms": 250, "digest": "d"}
    assert {name: row[name] for name in expected} == expected
    assert row["score"] == pytest.approx(0.6)
    assert [top["label"] for top in row["top"]] == ["b", "d", "a"]
    assert json.loads(row["attributes"]) == {"sex": "f"}
    assert row["subject"] == hmac.new(KEY, b"patient 7", hashlib.sha256).hexdigest()
    raw = b"".join(file.read_bytes() for file in tmp_path.glob("answers/day=*/*"))
    assert b"patient 7" not in raw


def test_texts_are_logged_only_on_request_and_subjects_only_with_a_key(tmp_path: Path) -> None:
    answer = entry(1, text="input", answer="output", subject="s")
    (row,) = log_and_read(tmp_path, [answer], texts=True)
    assert (row["text"], row["answer"], row["subject"]) == ("input", "output", None)
    for texts, expected in ((True, "input"), (False, None)):
        assert request_log(tmp_path, texts=texts).loggable("input") == expected


def test_rows_are_stored_by_day_and_feedback_in_a_separate_folder(tmp_path: Path) -> None:
    async def work(log: RequestLog) -> None:
        log.answers.add([entry(1), entry(2, at=NOON.replace(day=2)), entry(3)])
        log.feedback.add([FeedbackEntry(request_id="r1", at=NOON, row=3, label="b")])

    run_log(tmp_path, work)
    days = sorted(folder.name for folder in (tmp_path / "answers").iterdir())
    assert days == ["day=2026-05-01", "day=2026-05-02"]
    assert {row["request_id"] for row in written(tmp_path)} == {"r1", "r2", "r3"}
    (file,) = tmp_path.glob("feedback/day=2026-05-01/*.parquet")
    (row,) = pq.read_table(file, partitioning=None).to_pylist()
    given = {name: value for name, value in row.items() if value is not None}
    assert given == {"request_id": "r1", "at": NOON, "row": 3, "label": "b"}
