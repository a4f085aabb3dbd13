from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tailorbird.data.rows import NO_GROUP
from tailorbird.monitoring.label_audit import audit_files, audited_rows, parse_days
from tailorbird.monitoring.log_reader import key_of
from tailorbird.monitoring.monitored_tasks import AuditError
from tests.unit.monitoring.log_task import (
    FIRST,
    LONG_AGO,
    SECRET,
    Task,
    answer,
    shadow,
)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


def test_the_rows_with_the_smallest_keys_are_drawn_regardless_of_files(task: Task) -> None:
    rows = [answer(number) for number in range(60)]
    for start in range(0, 60, 7):
        task.write(*rows[start : start + 7], rows[0], shadow(100 + start))
    table = task.export(20)
    drawn = table["request_id"].to_pylist()
    ids = [row["request_id"] for row in rows]
    assert drawn == sorted(ids, key=lambda id: key_of(id, 0, caller=None, secret=SECRET))[:20]
    assert table["label"].null_count == 20

    task.fill(table, label=["a"] * 20)
    rest = task.export(100)["request_id"].to_pylist()
    assert len(rest) == 40
    assert not set(rest) & set(drawn)
    with pytest.raises(AuditError, match="--rows"):
        task.export(0)


def test_a_client_without_the_secret_cannot_pick_ids_that_are_drawn(task: Task) -> None:
    """Another secret draws other rows, so nothing that a client can compute tells which rows are
    drawn."""
    task.write(*(answer(number) for number in range(1000)))
    drawn = set(task.export(500)["request_id"].to_pylist())
    task.store_secret(b"t" * 32)
    again = set(task.export(500)["request_id"].to_pylist())
    assert len(drawn & again) == pytest.approx(250, abs=40)


def test_the_last_imported_label_of_a_text_counts(task: Task) -> None:
    task.write(answer(0))
    table = task.export()
    stored = []
    for label in ("a", "b", "a"):
        stored.append(task.fill(table, label=[label])[0])
        assert task.fill(table, label=[label])[0] == stored[-1]  # the same file is stored once
        assert audited_rows(task.recipe, since=LONG_AGO).labels == (label,)
    assert audit_files(task.recipe.task_uri) == stored
    assert len(set(stored)) == 3


def test_texts_filled_in_by_people_are_redacted(task: Task) -> None:
    task.write(*(answer(number, text=None) for number in range(2)))
    texts = ["ann.lee@example.org is ill", None]
    stored, num = task.fill(task.export(), label=["a", "b"], text=texts)
    assert num == 2
    content = pq.read_table(stored.removeprefix("file://"))["text"].to_pylist()
    assert content == ["[email] is ill", None]
    assert audited_rows(task.recipe, since=LONG_AGO).texts == ("[email] is ill",)


def test_a_labelled_row_without_an_id_is_rejected(task: Task) -> None:
    task.write(answer(0), answer(1))
    table = task.export()
    ids = [table["request_id"][0].as_py(), None]
    with pytest.raises(AuditError, match="request_id"):
        task.fill(table, label=["a", "b"], request_id=ids)
    assert task.fill(table, label=["a", None], request_id=ids)[1] == 1


@pytest.mark.parametrize("days", ["2026-03-07:2026-03-01", "2026-03-01", "1 March:2 March"])
def test_days_that_are_not_a_range_are_rejected(days: str) -> None:
    with pytest.raises(AuditError, match="--days"):
        parse_days(days)
    assert parse_days("2026-02-28:2026-03-01") == [FIRST - timedelta(days=1), FIRST]


def test_audited_rows_have_their_group_and_the_split_key_of_their_request(
    task: Task,
) -> None:
    rows = [
        answer(0, attributes=None),
        answer(1, attributes="{}"),
        answer(2, attributes='{"sex": null}'),
        answer(3),
        answer(4),
        answer(4, row=1, at=answer(4)["at"] + timedelta(hours=1)),
    ]
    task.write(*rows)
    task.fill(task.export(), label=["a"] * 6)
    audited = audited_rows(task.recipe, since=LONG_AGO)
    requests = [f"{FIRST}-{number}" for number in (0, 1, 2, 3, 4, 4)]
    assert sorted(audited.split_keys or ()) == requests
    assert sorted(audited.groups["sex"]) == [NO_GROUP] * 3 + ["f"] * 3
    assert len(audited_rows(task.recipe, since=rows[-1]["at"])) == 1
