"""Rows that are not stored yet survive their replica."""

import asyncio
import hashlib
import hmac
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.request_log import write_ahead_log, writer
from serving.request_log.log import RequestLog
from tests.unit.serving.request_log.test_log import FACE, KEY, NOON, counted_bytes, entry, written

ROOT = Path(__file__).parents[4]


async def keep_in_wal(
    folder: Path, numbers: Sequence[int] = (), *, end: bool = True, write_abandoned: bool = False
) -> None:
    """A replica of the log in `folder`, which takes rows, and ends."""
    log = RequestLog(folder.as_uri(), subject_key=KEY, texts=False, wal_folder=folder / "wal")
    log.answers.add([entry(number, subject=f"patient {number}", scores=None) for number in numbers])
    if write_abandoned:
        await asyncio.gather(log.answers._write_abandoned(), log.feedback._write_abandoned())
    await asyncio.sleep(0)
    if end:
        await log.close()


def wal_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "wal").rglob("*") if path.is_file())


def test_rows_of_a_killed_replica_are_written_by_the_next_once_and_hashed(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path;"
        "from tests.unit.serving.request_log import test_write_ahead_log as t;"
        "asyncio.run(t.keep_in_wal(Path(sys.argv[1]), range(3), end=False)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert written(tmp_path) == []
    assert b"patient" not in b"".join(path.read_bytes() for path in wal_files(tmp_path))
    for _ in range(2):
        asyncio.run(keep_in_wal(tmp_path, [7], write_abandoned=True))
        assert [row["request_id"] for row in written(tmp_path) if row["request_id"] != "r7"] == ["r0", "r1", "r2"]
    assert wal_files(tmp_path) == []
    assert {row["subject"] for row in written(tmp_path)} >= {hmac.new(KEY, b"patient 0", hashlib.sha256).hexdigest()}


def test_rows_of_a_replica_that_lives_are_left_to_it(tmp_path: Path) -> None:
    async def both_alive() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "wal")
        log.answers.add([entry(1)])
        await keep_in_wal(tmp_path, write_abandoned=True)
        assert written(tmp_path) == []
        await log.close()

    asyncio.run(both_alive())
    assert [row["request_id"] for row in written(tmp_path)] == ["r1"]


def test_what_a_store_that_is_away_at_the_end_did_not_take_is_written_by_the_next_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_bytes", away)
        asyncio.run(keep_in_wal(tmp_path, [1, 2], write_abandoned=True))
        asyncio.run(keep_in_wal(tmp_path, [3], write_abandoned=True))  # it finds them, and cannot write them either
    assert "wait on this node's disk for the next replica" in caplog.text
    assert "are lost" not in caplog.text
    file = next(path for path in wal_files(tmp_path) if path.suffix == ".jsonl")
    with file.open("a") as cut:  # as a node leaves it whose disk was full
        cut.write('{"request_id": "r9", "at')
    damaged = {"request_id": "r8", "at": NOON.isoformat(), "top": 1}  # which is no list
    file.with_name("0000-000000.jsonl").write_text(json.dumps(damaged))
    file.with_name("0000.lock").touch()
    asyncio.run(keep_in_wal(tmp_path, write_abandoned=True))
    assert sorted(row["request_id"] for row in written(tmp_path)) == ["r1", "r2", "r3"]
    assert [path.name for path in wal_files(tmp_path)] == ["0000-000000.jsonl", "0000.lock"]  # which holds up no other


def test_a_full_disk_is_told_and_rows_go_to_the_store_nevertheless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            for number in (1, 2):
                log.answers.add([entry(number)])
                await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await log.close()

    asyncio.run(keep())
    assert [row["request_id"] for row in written(tmp_path)] == ["r1", "r2"]
    assert len([record for record in caplog.records if "the disk says" in record.getMessage()]) == 1


def test_what_lies_on_disk_is_bounded_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(write_ahead_log, "MAX_BYTES", 1 << 20)

    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "wal")
        log.answers.add([entry(1, label=FACE * 300_000)])
        await log.close()

    asyncio.run(keep())
    assert "1 MiB of rows wait" in caplog.text
    assert [row["request_id"] for row in written(tmp_path)] == ["r1"]


def test_if_no_write_ahead_log_can_be_made_rows_go_to_the_store_nevertheless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=Path("/proc/nowhere"))
        log.answers.add([entry(3)])
        await log.close()

    asyncio.run(keep())
    assert [row["request_id"] for row in written(tmp_path)] == ["r3"]
    assert "no file can be made in /proc/nowhere" in caplog.text


def test_what_is_too_much_for_memory_is_on_disk_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    label = "a\u2028b\x85c\n"  # which some take for the ends of lines
    monkeypatch.setattr(writer, "MAX_BYTES", 5 * counted_bytes(entry(20, label=label)))
    monkeypatch.setattr(writer, "FILE_ROWS", 4)

    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "wal")
        with monkeypatch.context() as away:
            away.setattr(writer, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("away")))
            for number in range(21):
                log.answers.add([entry(number, label=label)])
                await log.answers.flush() if number % 6 == 5 else await asyncio.sleep(0)
        assert len(log.answers._open.rows) + sum(len(batch.rows) for batch in log.answers._sealed) == 5
        await log.close()
        assert log.answers.num_dropped == 0

    asyncio.run(keep())
    rows = written(tmp_path)
    assert sorted(int(row["request_id"][1:]) for row in rows) == list(range(21))
    assert {row["label"] for row in rows} == {label}
    assert "are lost" not in caplog.text
    assert wal_files(tmp_path) == []
