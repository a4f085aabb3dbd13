"""The write-ahead log keeps rows that an ended replica did not store."""

import asyncio
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving.request_log import writer
from serving.request_log.log import RequestLog
from tests.unit.serving.request_log.test_log import (
    NOON,
    entry,
    request_log,
    run_log,
    written,
)

ROOT = Path(__file__).parents[4]


async def keep_in_wal(
    folder: Path, numbers: Sequence[int] = (), *, end: bool = True, write_abandoned: bool = False
) -> None:
    """Add rows to a log in `folder` as a replica does, and close the log if `end`."""
    log = request_log(folder)
    log.answers.add([entry(number) for number in numbers])
    if write_abandoned:
        await asyncio.gather(log.answers._write_abandoned(), log.feedback._write_abandoned())
    await asyncio.sleep(0)
    if end:
        await log.close()


def wal_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "wal").rglob("*") if path.is_file())


def test_the_next_replica_writes_the_rows_of_a_killed_replica_once(
    tmp_path: Path,
) -> None:
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path;from "
        "tests.unit.serving.request_log import test_write_ahead_log as t;"
        "asyncio.run(t.keep_in_wal(Path(sys.argv[1]), range(3), end=False)); os.kill(os.getpid(), "
        "signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert written(tmp_path) == []
    for _ in range(2):
        asyncio.run(keep_in_wal(tmp_path, [7], write_abandoned=True))
        assert [row["request_id"] for row in written(tmp_path) if row["request_id"] != "r7"] == [
            "r0",
            "r1",
            "r2",
        ]
    assert wal_files(tmp_path) == []


def test_rows_of_a_running_replica_are_not_written_by_another(tmp_path: Path) -> None:
    async def work(log: RequestLog) -> None:
        log.answers.add([entry(1)])
        await keep_in_wal(tmp_path, write_abandoned=True)
        assert written(tmp_path) == []

    run_log(tmp_path, work)
    assert [row["request_id"] for row in written(tmp_path)] == ["r1"]


def test_the_next_replica_writes_the_rows_that_unavailable_storage_did_not_accept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_bytes", None)
        asyncio.run(keep_in_wal(tmp_path, [1, 2], write_abandoned=True))
        asyncio.run(
            keep_in_wal(tmp_path, [3], write_abandoned=True)
        )  # reads them, but cannot write them either
    assert "are lost" not in caplog.text
    file = next(path for path in wal_files(tmp_path) if path.suffix == ".jsonl")
    with file.open("a") as cut:  # as on a node with a full disk
        cut.write('{"request_id": "r9", "at')
    damaged = {"request_id": "r8", "at": NOON.isoformat(), "top": 1}  # `top` must be a list
    file.with_name("0000-000000.jsonl").write_text(f"{json.dumps(damaged)}\n")
    file.with_name("0000.lock").touch()
    asyncio.run(keep_in_wal(tmp_path, write_abandoned=True))
    assert sorted(row["request_id"] for row in written(tmp_path)) == ["r1", "r2", "r3"]
    assert [path.name for path in wal_files(tmp_path)] == [
        "0000-000000.jsonl",
        "0000.lock",
    ]  # the damaged batch stays, and does not block the others


def test_a_full_disk_is_logged_and_only_its_rows_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def work(log: RequestLog) -> None:
        log.answers.add([entry(0)])
        (file,) = (path for path in wal_files(tmp_path) if path.suffix == ".jsonl")
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, before[1]))
        try:
            for number in (1, 2):
                log.answers.add([entry(number)])
                await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.answers.add([entry(3)])

    run_log(tmp_path, work)
    assert [row["request_id"] for row in written(tmp_path)] == ["r0", "r3"]
    assert "no key: 2" in caplog.text
    assert wal_files(tmp_path) == []


def test_a_key_that_fills_the_disk_loses_only_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "MAX_BYTES", 1 << 20)

    async def work(log: RequestLog) -> None:
        log.answers.add([entry(0, caller="calm")])
        for number in range(1, 1000):
            log.answers.add(
                [entry(number, caller="flood", label="\x01" * 500)]
            )  # six bytes each on the disk
        on_disk = sum(path.stat().st_size for path in wal_files(tmp_path))
        log.answers.add([entry(number, caller="calm") for number in range(1000, 1050)])
        assert on_disk <= 1 << 19

    num_dropped = run_log(tmp_path, work).answers.num_dropped
    rows = written(tmp_path)
    assert [int(row["request_id"][1:]) for row in rows if row["caller"] == "calm"] == [
        0,
        *range(1000, 1050),
    ]
    lost = 999 - sum(row["caller"] == "flood" for row in rows)
    assert 800 < lost == num_dropped < 999
    assert f"flood: {lost}" in caplog.text
    assert wal_files(tmp_path) == []
