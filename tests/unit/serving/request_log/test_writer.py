"""Rows are written once, stay on the disk while storage is unavailable, and are bounded."""

import asyncio
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.request_log import writer
from tailorbird.storage import write_bytes
from tests.unit.serving.request_log.test_log import (
    NOON,
    counted_bytes,
    entry,
    request_log,
    written,
)


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

    async def keep() -> None:
        log = request_log(tmp_path)
        log.answers.add([entry(1), entry(2, at=NOON.replace(day=2))])
        await log.answers.flush()
        log.answers.add([entry(3)])
        await log.answers.flush()
        await log.answers.flush()
        log.answers.add([entry(4)])
        await log.close()
        assert log.answers.num_dropped == 0

    monkeypatch.setattr(writer, "write_bytes", failing)
    asyncio.run(keep())
    assert sorted(row["request_id"] for row in written(tmp_path)) == ["r1", "r2", "r3", "r4"]
    assert caplog.text.count("cannot be written: unavailable") == 1


def test_bytes_are_free_again_when_rows_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_BYTES", 14 * counted_bytes(entry(0)))

    async def keep() -> None:
        log = request_log(tmp_path)
        for start in range(0, 30, 6):
            log.answers.add([entry(number) for number in range(start, start + 6)])
            await log.answers.flush()
        assert log.answers.num_dropped == 0
        await log.close()

    asyncio.run(keep())
    assert len(written(tmp_path)) == 30


def test_the_size_of_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 2 * counted_bytes(entry(0)))

    async def keep() -> None:
        log = request_log(tmp_path)
        for number in range(5):
            log.answers.add([entry(number)])
        log.answers.add([entry(5, label="a" * 10_000)])
        log.answers.add([entry(6)])
        await log.close()

    asyncio.run(keep())
    files = sorted(tmp_path.rglob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [2, 2, 2, 1]


def test_unresponsive_storage_delays_closing_only_up_to_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(writer, "CLOSE_S", 0.05)
    monkeypatch.setattr(writer, "write_bytes", lambda *_: released.wait(30))

    async def end() -> None:
        log = request_log(tmp_path)
        log.answers.add([entry(1), entry(2)])
        await log.close()
        released.set()

    asyncio.run(end())
    assert f"rows of {tmp_path.as_uri()}/answers stay on this node's disk" in caplog.text
