from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.request_log.schema import FeedbackEntry, LogEntry, arrow_schema
from tailorbird.data.rows import NO_GROUP
from tailorbird.monitoring import log_reader, traffic
from tailorbird.monitoring.log_reader import TrafficError, by_day, key_of, read_labels, read_traffic
from tailorbird.monitoring.traffic import CHAMPION, Labels, WatchedVersions

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = b"s" * 32
WATCHED = WatchedVersions("champion-digest", "trial-digest", ("sex",))


def answer(number: int, **fields: Any) -> dict[str, Any]:
    row = {
        "request_id": f"r{number}",
        "row": 0,
        "at": AT,
        "digest": "champion-digest",
        "arm": CHAMPION,
    }
    return (
        row
        | {"label": "a", "score": 0.75, "attributes": '{"sex": "f"}', "text": f"text {number}"}
        | fields
    )


def feedback_row(number: int, label: str, *, minute: int = 0) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "row": 0,
        "at": AT.replace(minute=minute),
        "label": label,
        "caller": None,
    }


def log_of(
    folder: Path, *, answers: Sequence[dict[str, Any]] = (), feedback: Sequence[dict[str, Any]] = ()
) -> str:
    """Write a log in the schema of serving, with one file of each kind."""
    for kind, rows, schema in (
        ("answers", answers, LogEntry),
        ("feedback", feedback, FeedbackEntry),
    ):
        if rows:
            path = folder / kind / "day=2026-03-01"
            path.mkdir(parents=True)
            pq.write_table(
                pa.Table.from_pylist(list(rows), schema=arrow_schema(schema)), path / "one.parquet"
            )
    return folder.as_uri()


def log_files(log: str, kind: str) -> list[str]:
    return [uri for files in by_day(log, kind).values() for uri in files]


def read(folder: Path, **kinds: Sequence[dict[str, Any]]) -> tuple[traffic.Traffic, Labels]:
    log = log_of(folder, **kinds)
    labels = read_labels(log_files(log, "feedback"), secret=SECRET)
    return read_traffic(log_files(log, "answers"), WATCHED, labels=labels, secret=SECRET), labels


def test_answers_are_counted_by_version_and_joined_with_labels(tmp_path: Path) -> None:
    result, labels = read(
        tmp_path,
        answers=[
            answer(0),
            answer(1, score=0.25),
            answer(0, arm="shadow", digest="trial-digest", label="b"),
            answer(2, arm=None, digest="another"),
            answer(3, label=None, score=None, attributes=None),
        ],
        feedback=[feedback_row(0, "b"), feedback_row(9, "a")],
    )
    assert result.num_rows == 5
    assert result.rows == {
        (CHAMPION, "champion-digest"): 3,
        ("shadow", "trial-digest"): 1,
        ("", "another"): 1,
    }
    assert sum(result.unanswered.values()) == 1
    assert len(labels) == 2
    assert result.outcomes.scores.tolist() == [False, True]
    assert [traffic.ARMS[arm] for arm in result.outcomes.arms] == [CHAMPION, "shadow"]
    assert result.outcomes.groups == (("f",), ("f",))
    assert not result.outcomes.audited.any()


def test_the_latest_feedback_of_the_key_that_got_the_answer_counts(tmp_path: Path) -> None:
    answers = [answer(number, caller="app") for number in range(3)]
    answers[0]["attributes"] = '{"sex": null}'
    answers[2]["attributes"] = None
    feedback = [
        feedback_row(0, "b", minute=9) | {"caller": "other"},
        feedback_row(0, "a", minute=5) | {"caller": "app"},
        feedback_row(0, "b", minute=1) | {"caller": "app"},
        feedback_row(1, "b"),  # without a key
        feedback_row(2, "b") | {"caller": "app"},
    ]
    result, labels = read(tmp_path, answers=answers, feedback=feedback)
    assert result.outcomes.scores.tolist() == [True, False]
    assert result.outcomes.groups == ((NO_GROUP,),) * 2
    assert len(labels) == 4


def test_the_sample_does_not_depend_on_the_files_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "MAX_SAMPLE_ROWS", 20)
    monkeypatch.setattr(log_reader, "FILES_PER_TASK", 2)
    rows = [answer(number, score=number / 100) for number in range(100)]
    rows += rows[:5]  # as after a write that was repeated
    files = []
    for start in range(0, 105, 10):
        uri = tmp_path / f"{start}.parquet"
        pq.write_table(
            pa.Table.from_pylist(rows[start : start + 10], schema=arrow_schema(LogEntry)), uri
        )
        files.append(uri.as_uri())
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(LogEntry)), whole)
    cut, at_once = (
        read_traffic(uris, WATCHED, labels=read_labels([], secret=SECRET), secret=SECRET).sample
        for uris in (files, [whole.as_uri()])
    )
    assert len(cut) == 20
    assert cut.equals(at_once)
    smallest = sorted(key_of(f"r{number}", 0, caller=None, secret=SECRET) for number in range(100))[
        :20
    ]
    assert cut["key"].to_pylist() == smallest


def test_a_file_that_does_not_belong_to_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not Parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    for path in tmp_path.iterdir():
        with pytest.raises(TrafficError, match=path.name):
            read_labels([path.as_uri()], secret=SECRET)


def test_the_columns_read_are_those_that_serving_writes() -> None:
    assert set(log_reader.ANSWERS) <= set(arrow_schema(LogEntry).names)
    assert set(log_reader.FEEDBACK) <= set(arrow_schema(FeedbackEntry).names)


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("s", tz="UTC"), pa.timestamp("ns", tz="Europe/Berlin"), pa.timestamp("ms")],
)
def test_times_in_other_units_are_converted(tmp_path: Path, kind: pa.DataType) -> None:
    log = log_of(
        tmp_path,
        answers=[answer(0)],
        feedback=[feedback_row(0, "b", minute=1), feedback_row(0, "a", minute=2)],
    )
    for uri in [*log_files(log, "answers"), *log_files(log, "feedback")]:
        table = pq.read_table(uri)
        index = table.column_names.index("at")
        pq.write_table(
            table.set_column(index, "at", table["at"].cast(kind)), unquote(urlsplit(uri).path)
        )
    labels = read_labels(log_files(log, "feedback"), secret=SECRET)
    result = read_traffic(log_files(log, "answers"), WATCHED, labels=labels, secret=SECRET)
    assert result.outcomes.at.tolist() == [int(AT.timestamp()) * 1_000_000]
    assert result.outcomes.labelled_at.tolist() == [int(AT.timestamp() + 120) * 1_000_000]
    assert result.outcomes.scores.tolist() == [True]


def test_a_text_belongs_to_the_first_audit_that_labelled_it_and_has_its_latest_label(
    tmp_path: Path,
) -> None:
    log = log_of(
        tmp_path,
        answers=[answer(number) for number in range(3)],
        feedback=[feedback_row(0, "b", minute=50), feedback_row(2, "b")],
    )
    audits = []
    for number, rows in enumerate(
        [[], [feedback_row(0, "b")], [feedback_row(0, "a"), feedback_row(1, "a")]]
    ):
        audits.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(FeedbackEntry)), audits[-1])
    files = {kind: log_files(log, kind) for kind in ("answers", "feedback")}
    labels = read_labels(
        files["feedback"], secret=SECRET, audits=[path.as_uri() for path in audits]
    )
    result = read_traffic(files["answers"], WATCHED, labels=labels, secret=SECRET).outcomes
    by_key = {
        int(key): (int(audit), bool(right))
        for key, audit, right in zip(result.keys, result.audits, result.scores, strict=True)
    }
    keys = [
        log_reader.key_of(answer(number)["request_id"], 0, caller=None, secret=SECRET)
        for number in range(3)
    ]
    assert [by_key[key] for key in keys] == [(2, True), (3, True), (0, False)]


def test_answers_with_one_subject_are_one_unit_and_others_belong_to_their_request(
    tmp_path: Path,
) -> None:
    rows = [answer(number, subject="s") for number in range(2)]
    rows += [answer(2), answer(3), answer(3) | {"row": 1}]
    labels = [feedback_row(number, "a") for number in range(4)] + [
        feedback_row(3, "a") | {"row": 1}
    ]
    result, _ = read(tmp_path, answers=rows, feedback=labels)
    units, counts = np.unique(result.outcomes.units, return_counts=True)
    assert sorted(counts) == [1, 2, 2]
    assert result.outcomes.is_subject.sum() == 2
    assert log_reader.unit_of("s", challenger=WATCHED.challenger, secret=SECRET) in units
    assert log_reader.unit_of("s", challenger="another", secret=SECRET) not in units
