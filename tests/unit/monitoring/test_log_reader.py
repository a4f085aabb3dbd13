from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.data.rows import NO_GROUP
from tailorbird.monitoring import log_reader, traffic
from tailorbird.monitoring.log_reader import (
    TrafficError,
    key_of,
    read_columns,
    read_labels,
    read_traffic,
    request_code,
)
from tailorbird.monitoring.traffic import ARMS, Traffic, WatchedVersions
from tests.unit.monitoring.log_task import (
    CHALLENGER,
    DIGEST,
    FIRST,
    SECRET,
    Row,
    answer,
    feedback,
    shadow,
    time_on,
    write,
)

WATCHED = WatchedVersions(champion=DIGEST, challenger=CHALLENGER.digest, groups=("sex",))


def read(
    log: Path, answers: Sequence[Row], labels: Sequence[Row] = (), audits: Sequence[str] = ()
) -> Traffic:
    """Write a log with one file of each kind, and return its traffic."""
    known = read_labels([write(log, "feedback", labels)], secret=SECRET, audits=audits)
    return read_traffic([write(log, "answers", answers)], WATCHED, labels=known, secret=SECRET)


def code_of(number: int) -> int:
    return key_of(f"{FIRST}-{number}", 0, caller=None, secret=SECRET)


def test_answers_are_counted_by_version_and_joined_with_the_latest_label_of_their_key(
    tmp_path: Path,
) -> None:
    answers = [
        answer(0, caller="app", attributes='{"sex": null}'),
        answer(1, caller="app"),
        shadow(0, caller="app", label="b"),
        answer(2, arm=None, digest="another"),
        answer(3, label=None, score=None),
    ]
    labels = [
        feedback(0, label="b", caller="other", at=time_on(FIRST, 13, 9)),
        feedback(0, label="a", caller="app", at=time_on(FIRST, 13, 5)),
        feedback(0, label="b", caller="app", at=time_on(FIRST, 13, 1)),
        feedback(1, label="b"),  # without a key
        feedback(9, label="a"),
    ]
    result = read(tmp_path, answers, labels)
    assert result.num_rows == 5
    assert result.rows == {
        ("champion", DIGEST): 3,
        ("shadow", CHALLENGER.digest): 1,
        ("", "another"): 1,
    }
    outcomes = result.outcomes
    assert outcomes.scores.tolist() == [1, 0]
    assert [ARMS[arm] for arm in outcomes.arms] == ["champion", "shadow"]
    assert outcomes.groups == ((NO_GROUP,), ("f",))
    assert not outcomes.audited.any()


def test_the_sample_does_not_depend_on_the_files_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "MAX_SAMPLE_ROWS", 20)
    monkeypatch.setattr(log_reader, "FILES_PER_TASK", 2)
    rows = [answer(number) for number in range(100)]
    rows += rows[:5]  # as after a write that was repeated
    files = [write(tmp_path, "answers", rows[start : start + 10]) for start in range(0, 105, 10)]
    labels = read_labels([], secret=SECRET)
    sample = read_traffic(files, WATCHED, labels=labels, secret=SECRET).sample
    assert sample["key"].to_pylist() == sorted(map(code_of, range(100)))[:20]
    assert sample.equals(read(tmp_path, rows).sample)


def test_a_file_that_does_not_belong_to_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not Parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    for path in tmp_path.iterdir():
        with pytest.raises(TrafficError, match=path.name):
            read_columns(path.as_uri(), log_reader.FEEDBACK)


def test_a_text_belongs_to_the_first_audit_that_labelled_it_and_has_its_latest_label(
    tmp_path: Path,
) -> None:
    by_clients = [feedback(0, label="b", at=time_on(FIRST, 14)), feedback(2, label="b")]
    imported = [[], [feedback(0, label="b")], [feedback(0, label="a"), feedback(1, label="a")]]
    audits = [write(tmp_path, "audits", rows) for rows in imported]
    result = read(tmp_path, [answer(number) for number in range(3)], by_clients, audits).outcomes
    order = [result.keys.tolist().index(code_of(number)) for number in range(3)]
    assert result.audits[order].tolist() == [2, 3, 0]
    assert result.scores[order].tolist() == [1, 1, 0]


def test_the_answers_to_one_request_have_its_code(tmp_path: Path) -> None:
    labels = [feedback(number, label="a") for number in range(2)]
    rows = [answer(0), answer(1), answer(1, row=1)]
    result = read(tmp_path, rows, [*labels, feedback(1, label="a", row=1)]).outcomes
    requests, counts = np.unique(result.requests, return_counts=True)
    assert sorted(counts) == [1, 2]
    assert request_code(f"{FIRST}-0", secret=SECRET) in requests
