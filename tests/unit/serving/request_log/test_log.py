"""Rows of the request log: optional texts, files by day, and storage that is unavailable."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.request_log import writer
from serving.request_log.log import RequestLog
from serving.request_log.schema import LogEntry, top_classes
from serving.request_log.write_ahead_log import encode_row
from tailorbird.storage import write_bytes

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


def request_log(folder: Path, *, texts: bool = False) -> RequestLog:
    return RequestLog(folder.as_uri(), texts=texts, wal_folder=folder / "wal")


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


def test_texts_are_logged_only_on_request(tmp_path: Path) -> None:
    top = top_classes(("a", "b", "c", "d"), np.array([0.1, 0.6, 0.05, 0.25]))
    answer = entry(1, text="input", answer="output", top=top)
    (row,) = log_and_read(tmp_path, [answer], texts=True)
    assert (row["text"], row["answer"]) == ("input", "output")
    assert [top["label"] for top in row["top"]] == ["b", "d", "a"]
    for texts, expected in ((True, "input"), (False, None)):
        assert request_log(tmp_path, texts=texts).loggable("input") == expected


LINES = "a\u2028b\x85c\n"
"""Characters that some readers treat as line ends."""


def test_rows_that_unavailable_storage_did_not_accept_are_written_later_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def failing(uri: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 3):  # the second day of the first attempt, and the second attempt
            raise OSError("unavailable")
        write_bytes(uri, data)

    async def work(log: RequestLog) -> None:
        log.answers.add([entry(1), entry(2, at=NOON.replace(day=2))])
        await log.answers.flush()
        log.answers.add([entry(3, label=LINES)])
        await log.answers.flush()
        await log.answers.flush()
        log.answers.add([entry(4)])

    monkeypatch.setattr(writer, "write_bytes", failing)
    assert run_log(tmp_path, work).answers.num_dropped == 0
    labels = {row["request_id"]: row["label"] for row in written(tmp_path)}
    assert labels == {"r1": None, "r2": None, "r3": LINES, "r4": None}
    assert caplog.text.count(": unavailable") == 1
    days = sorted(folder.name for folder in (tmp_path / "answers").iterdir())
    assert days == ["day=2026-05-01", "day=2026-05-02"]


def test_a_file_is_bounded_and_bytes_are_free_again_when_rows_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = len(encode_row(request_log(tmp_path)._row(entry(0))))
    monkeypatch.setattr(writer, "MAX_BYTES", 14 * num_bytes)
    monkeypatch.setattr(writer, "FILE_BYTES", 4 * num_bytes)

    async def work(log: RequestLog) -> None:
        for start in range(0, 30, 6):
            for number in range(start, start + 6):
                log.answers.add([entry(number)])
            await log.answers.flush()

    assert run_log(tmp_path, work).answers.num_dropped == 0
    files = sorted(tmp_path.rglob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [4, 2] * 5


def test_unresponsive_storage_delays_closing_only_up_to_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(writer, "CLOSE_S", 0.05)
    monkeypatch.setattr(writer, "write_bytes", lambda *_: released.wait(30))

    async def end() -> None:
        log = request_log(tmp_path)
        log.answers.add([entry(1), entry(2)])
        await asyncio.wait_for(log.close(), 20)
        released.set()

    asyncio.run(end())
