"""Rows of the request log: columns, hashed subjects, optional texts, and files by day."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from serving.request_log.log import RequestLog
from serving.request_log.schema import LogEntry, top_classes
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


def test_texts_are_logged_only_on_request_and_subjects_only_with_a_key(tmp_path: Path) -> None:
    top = top_classes(("a", "b", "c", "d"), np.array([0.1, 0.6, 0.05, 0.25]))
    answer = entry(1, text="input", answer="output", subject="s", top=top)
    (row,) = log_and_read(tmp_path, [answer], texts=True)
    assert (row["text"], row["answer"], row["subject"]) == ("input", "output", None)
    assert [top["label"] for top in row["top"]] == ["b", "d", "a"]
    for texts, expected in ((True, "input"), (False, None)):
        assert request_log(tmp_path, texts=texts).loggable("input") == expected
