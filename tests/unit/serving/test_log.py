"""The request log: every row once, by day, hashed where it is about somebody, and waiting while the store is away."""

import asyncio
import hashlib
import hmac
import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.storage import write_bytes
from serving import log as request_log
from serving.log import Entry, Feedback, RequestLog

KEY = b"k" * 32
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def entry(number: int, *, at: datetime = NOON, **fields: Any) -> Entry:
    values: dict[str, Any] = {
        "request_id": f"r{number}",
        "at": at,
        "model": "m",
        "version": "v",
        "digest": "d",
        "row": 0,
        "latency_s": 0.25,
    }
    return Entry(**values | fields)


def written(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("answers/day=*/*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def kept(folder: Path, entries: Sequence[Entry], *, key: bytes | None = KEY, texts: bool = False) -> list[Any]:
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
        asker="app",
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
    assert (row["route"], row["asker"]) == ("compare", "app")


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

    monkeypatch.setattr(request_log, "write_bytes", failing)
    asyncio.run(keep())
    assert sorted(row["request_id"] for row in written(tmp_path)) == ["r1", "r2", "r3", "r4"]
    assert len([record for record in caplog.records if "cannot be written: away" in record.getMessage()]) == 1


def test_memory_is_bounded_and_what_is_given_up_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_log, "MAX_BYTES", 5 * request_log.ROW_BYTES)
    monkeypatch.setattr(request_log, "FILE_ROWS", 2)
    rows = kept(tmp_path, [entry(number) for number in range(8)])
    assert [row["request_id"] for row in rows] == ["r3", "r4", "r5", "r6", "r7"]
    assert f"3 rows of {tmp_path.as_uri()}/answers are lost" in caplog.text


def test_feedback_is_kept_beside_the_answers(tmp_path: Path) -> None:
    async def keep() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False)
        log.feedback.add([Feedback("r1", NOON, 3, "b")])
        await log.close()

    asyncio.run(keep())
    (file,) = tmp_path.glob("feedback/day=2026-05-01/*.parquet")
    rows = pq.read_table(file, partitioning=None).to_pylist()
    assert rows == [{"request_id": "r1", "at": NOON, "row": 3, "label": "b", "asker": None}]
    assert not (tmp_path / "answers").exists()


def test_a_store_that_does_not_answer_holds_up_the_end_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(request_log, "CLOSE_S", 0.05)
    monkeypatch.setattr(request_log, "write_bytes", lambda *_: released.wait(30))

    async def end() -> None:
        log = RequestLog(tmp_path.as_uri(), subject_key=None, texts=False)
        log.answers.add([entry(1), entry(2)])
        await log.close()
        released.set()

    asyncio.run(end())
    assert f"2 rows of {tmp_path.as_uri()}/answers are lost" in caplog.text
