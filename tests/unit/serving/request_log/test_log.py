"""The request log: every row once, by day, hashed where it is about somebody, and waiting while the store is away."""

import asyncio
import hashlib
import hmac
import json
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.request_log import write_ahead_log, writer
from serving.request_log.log import RequestLog
from serving.request_log.schema import FeedbackEntry, LogEntry
from tailorbird.storage import write_bytes

ROOT = Path(__file__).parents[4]
KEY = b"k" * 32
FACE = "\N{GRINNING FACE}"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def entry(number: int, *, at: datetime = NOON, **fields: Any) -> LogEntry:
    values: dict[str, Any] = {
        "request_id": f"r{number}",
        "at": at,
        "model": "m",
        "version": "v",
        "digest": "d",
        "row": 0,
        "latency_s": 0.25,
    }
    return LogEntry(**values | fields)


def written(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("answers/day=*/*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def held(one: LogEntry) -> int:
    """Bytes that are counted for a row."""
    return writer._size(RequestLog("file:///none", subject_key=None, texts=False)._row(one))


def kept(folder: Path, entries: Sequence[LogEntry], *, key: bytes | None = KEY, texts: bool = False) -> list[Any]:
    async def keep() -> None:
        log = RequestLog(folder.as_uri(), subject_key=key, texts=texts)
        log.answers.add(entries)
        await log.close()

    asyncio.run(keep())
    return written(folder)


def test_a_row_holds_the_answer_and_nothing_that_was_not_allowed(tmp_path: Path) -> None:
    told = entry(
        1,
        row=3,
        subject="patient 7",
        attributes={"sex": "f"},
        label="b",
        score=0.6,
        answered_by="candidate",
        classes=("a", "b", "c", "d"),
        scores=np.array([0.1, 0.6, 0.05, 0.25], dtype=np.float32),
        route="compare",
        caller="app",
    )
    (row,) = kept(tmp_path, [told])
    assert (row["request_id"], row["row"], row["at"], row["latency_ms"]) == ("r1", 3, NOON, 250)
    assert (row["model"], row["version"], row["digest"], row["answered_by"]) == ("m", "v", "d", "candidate")
    assert (row["label"], row["score"]) == ("b", pytest.approx(0.6))
    assert [top["label"] for top in row["top"]] == ["b", "d", "a"]
    assert json.loads(row["attributes"]) == {"sex": "f"}
    assert row["subject"] == hmac.new(KEY, b"patient 7", hashlib.sha256).hexdigest()
    raw = b"".join(file.read_bytes() for file in tmp_path.glob("answers/day=*/*"))
    assert b"patient 7" not in raw
    assert (row["route"], row["caller"]) == ("compare", "app")


def test_texts_are_kept_where_the_recipe_says_so_and_no_subject_without_a_key(tmp_path: Path) -> None:
    (row,) = kept(tmp_path, [entry(1, text="asked", answer="said", subject="s")], key=None, texts=True)
    assert (row["text"], row["answer"], row["subject"]) == ("asked", "said", None)
    for texts, wanted in ((True, "asked"), (False, None)):
        assert RequestLog(tmp_path.as_uri(), subject_key=None, texts=texts).kept("asked") == wanted


def test_rows_lie_by_day_of_their_answer(tmp_path: Path) -> None:
    kept(tmp_path, [entry(1), entry(2, at=NOON.replace(day=2)), entry(3)])
    assert sorted(folder.name for folder in (tmp_path / "answers").iterdir()) == ["day=2026-05-01", "day=2026-05-02"]
    assert {row["request_id"] for row in written(tmp_path)} == {"r1", "r2", "r3"}


def test_what_a_store_that_is_away_did_not_take_is_written_later_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def failing(uri: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 3):  # the second day of the first attempt, and the second attempt
            raise OSError("away")
        write_bytes(uri, data)

    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False)
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
    assert len([record for record in caplog.records if "cannot be written: away" in record.getMessage()]) == 1


def test_memory_is_bounded_and_what_is_given_up_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "MAX_BYTES", 5 * held(entry(0)))
    monkeypatch.setattr(writer, "FILE_ROWS", 2)
    rows = kept(tmp_path, [entry(number) for number in range(8)])
    assert [row["request_id"] for row in rows] == ["r3", "r4", "r5", "r6", "r7"]
    assert f"3 rows of {tmp_path.as_uri()}/answers are lost" in caplog.text


@pytest.mark.parametrize("attributes", [None, {f"{number:02d}{FACE * 254}": FACE * 256 for number in range(32)}])
def test_what_is_counted_is_what_rows_hold_in_memory_or_more(tmp_path: Path, attributes: dict[str, str] | None) -> None:
    classes, scores = ("a", "b", "c", "d"), np.array([0.1, 0.6, 0.05, 0.25], dtype=np.float32)

    def asked(number: int) -> list[LogEntry]:
        given = {**attributes} if attributes else None
        fields: dict[str, Any] = {"label": "b", "score": 0.6, "classes": classes, "scores": scores}
        return [entry(number, row=row, attributes=given, subject=f"s{number}", **fields) for row in range(2)]

    log = RequestLog(tmp_path.as_uri(), subject_key=KEY, texts=False)
    log.answers.add(asked(0))
    tracemalloc.start()
    try:
        for number in range(300):
            log.answers.add(asked(number))
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held_bytes <= log.answers._num_bytes <= 2.5 * held_bytes


def test_texts_that_share_their_attributes_share_what_is_written_of_them(tmp_path: Path) -> None:
    log, given = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False), {"sex": "f", "smile": FACE}
    one, other = (log._row(entry(1, row=row, attributes=given)) for row in range(2))
    assert one["attributes"] is other["attributes"]
    assert one["attributes"] == f'{{"sex": "f", "smile": "{FACE}"}}'
    assert log._row(entry(2, attributes={"sex": "m"}))["attributes"] == '{"sex": "m"}'


def test_a_file_holds_only_what_may_lie_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 2 * held(entry(0)))
    kept(tmp_path, [entry(number) for number in range(5)] + [entry(5, label="a" * 10_000)])
    sizes = [pq.read_table(file, partitioning=None).num_rows for file in sorted(tmp_path.rglob("*.parquet"))]
    assert sizes == [2, 2, 1, 1]


def test_feedback_is_kept_beside_the_answers(tmp_path: Path) -> None:
    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False)
        log.feedback.add([FeedbackEntry("r1", NOON, 3, "b")])
        await log.close()

    asyncio.run(keep())
    (file,) = tmp_path.glob("feedback/day=2026-05-01/*.parquet")
    rows = pq.read_table(file, partitioning=None).to_pylist()
    assert rows == [{"request_id": "r1", "at": NOON, "row": 3, "label": "b", "caller": None}]
    assert not (tmp_path / "answers").exists()


def test_a_store_that_does_not_answer_holds_up_the_end_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(writer, "CLOSE_S", 0.05)
    monkeypatch.setattr(writer, "write_bytes", lambda *_: released.wait(30))

    async def end() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False)
        log.answers.add([entry(1), entry(2)])
        await log.close()
        released.set()

    asyncio.run(end())
    assert f"2 rows of {tmp_path.as_uri()}/answers are lost" in caplog.text


async def keep_journaled(folder: Path, numbers: Sequence[int] = (), *, end: bool = True, adopt: bool = False) -> None:
    """A replica of the log in `folder`, which takes rows, and ends."""
    log = RequestLog(folder.as_uri(), subject_key=KEY, texts=False, wal_folder=folder / "journal")
    log.answers.add([entry(number, subject=f"patient {number}", scores=None) for number in numbers])
    if adopt:
        await asyncio.gather(log.answers._adopt(), log.feedback._adopt())
    await asyncio.sleep(0)
    if end:
        await log.close()


def journaled(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "journal").rglob("*") if path.is_file())


def test_rows_of_a_killed_replica_are_written_by_the_next_once_and_hashed(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path;"
        "from tests.unit.serving.request_log import test_log as t;"
        "asyncio.run(t.keep_journaled(Path(sys.argv[1]), range(3), end=False)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert written(tmp_path) == []
    assert b"patient" not in b"".join(path.read_bytes() for path in journaled(tmp_path))
    for _ in range(2):
        asyncio.run(keep_journaled(tmp_path, [7], adopt=True))
        assert [row["request_id"] for row in written(tmp_path) if row["request_id"] != "r7"] == ["r0", "r1", "r2"]
    assert journaled(tmp_path) == []
    assert {row["subject"] for row in written(tmp_path)} >= {hmac.new(KEY, b"patient 0", hashlib.sha256).hexdigest()}


def test_rows_of_a_replica_that_lives_are_left_to_it(tmp_path: Path) -> None:
    async def beside() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "journal")
        log.answers.add([entry(1)])
        await keep_journaled(tmp_path, adopt=True)
        assert written(tmp_path) == []
        await log.close()

    asyncio.run(beside())
    assert [row["request_id"] for row in written(tmp_path)] == ["r1"]


def test_what_a_store_that_is_away_at_the_end_did_not_take_is_written_by_the_next_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_bytes", away)
        asyncio.run(keep_journaled(tmp_path, [1, 2], adopt=True))
        asyncio.run(keep_journaled(tmp_path, [3], adopt=True))  # it finds them, and cannot write them either
    assert "wait on this node's disk for the next replica" in caplog.text
    assert "are lost" not in caplog.text
    whole = next(path for path in journaled(tmp_path) if path.suffix == ".jsonl")
    with whole.open("a") as cut:  # as a node leaves it whose disk was full
        cut.write('{"request_id": "r9", "at')
    told = {"request_id": "r8", "at": NOON.isoformat(), "top": 1}  # which is no list
    whole.with_name("0000-000000.jsonl").write_text(json.dumps(told))
    whole.with_name("0000.lock").touch()
    asyncio.run(keep_journaled(tmp_path, adopt=True))
    assert sorted(row["request_id"] for row in written(tmp_path)) == ["r1", "r2", "r3"]
    assert [path.name for path in journaled(tmp_path)] == ["0000-000000.jsonl", "0000.lock"]  # which holds up no other


def test_a_full_disk_is_told_and_rows_go_to_the_store_nevertheless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "journal")
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
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "journal")
        log.answers.add([entry(1, label=FACE * 300_000)])
        await log.close()

    asyncio.run(keep())
    assert "1 MiB of rows wait" in caplog.text
    assert [row["request_id"] for row in written(tmp_path)] == ["r1"]


def test_where_no_journal_can_be_made_rows_go_to_the_store_nevertheless(
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
    monkeypatch.setattr(writer, "MAX_BYTES", 5 * held(entry(20, label=label)))
    monkeypatch.setattr(writer, "FILE_ROWS", 4)

    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False, wal_folder=tmp_path / "journal")
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
    assert journaled(tmp_path) == []
