import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird import storage
from tailorbird.data.rows import NO_GROUP
from tailorbird.monitoring.challenger_units import control_share
from tailorbird.monitoring.label_audit import (
    audit_files,
    audited_rows,
    export_answers,
    import_labels,
    parse_days,
)
from tailorbird.monitoring.log_reader import key_of, unit_of
from tailorbird.monitoring.monitored_tasks import AuditError
from tailorbird.registry.draws import CODES, DrawSecret
from tailorbird.storage.paths import TaskPaths
from tests.unit.monitoring.test_daily_report import (
    CHALLENGER,
    DIGEST,
    FIRST,
    SECRET,
    Task,
    answer,
    write,
)

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


def drawn(task: Task, *, num_rows: int, challenger: str | None = None) -> pa.Table:
    """Export answers and return the table."""
    to = task.folder / "audit.parquet"
    export_answers(
        task.recipe,
        digest=DIGEST,
        challenger=challenger,
        days=[FIRST],
        num_rows=num_rows,
        to=to.as_uri(),
    )
    return pq.read_table(to)


def import_with(
    task: Task, table: pa.Table, labels: list[str | None], **columns: list[Any]
) -> tuple[str, int]:
    """Import the table with these labels."""
    for name, values in {"label": labels, **columns}.items():
        table = table.set_column(
            table.column_names.index(name), name, pa.array(values, pa.string())
        )
    pq.write_table(table, task.folder / "labelled.parquet")
    return import_labels(
        task.recipe, (task.folder / "labelled.parquet").as_uri(), classes=("a", "b")
    )


def test_the_rows_with_the_smallest_keys_are_drawn_regardless_of_files(task: Task) -> None:
    rows = [answer(FIRST, number) for number in range(60)]
    for start in range(0, 60, 7):
        write(
            task.log,
            "answers",
            FIRST,
            [*rows[start : start + 7], rows[0], answer(FIRST, 100 + start, arm="shadow")],
        )
    table = drawn(task, num_rows=20)
    keys = [
        key_of(request_id, 0, caller=None, secret=SECRET)
        for request_id in table["request_id"].to_pylist()
    ]
    assert (
        keys
        == sorted(key_of(row["request_id"], 0, caller=None, secret=SECRET) for row in rows)[:20]
    )
    assert table["label"].null_count == 20
    import_with(task, table, ["a"] * 20)
    others = drawn(task, num_rows=100)
    assert len(others) == 40
    assert not set(others["request_id"].to_pylist()) & set(table["request_id"].to_pylist())
    with pytest.raises(AuditError, match="--rows is 0"):
        drawn(task, num_rows=0)


def former_key(request_id: str, row: int) -> int:
    """Return the hash without a secret by which rows were drawn before."""
    return int.from_bytes(
        hashlib.blake2b(f"{request_id}|{row}".encode(), digest_size=8).digest(), "big"
    )


def test_a_client_that_picks_its_ids_gets_its_share_of_the_audit(task: Task) -> None:
    """The client has 1% of the rows, and those of 2,000 ids that a hash without a secret draws
    first."""
    picked = sorted((f"mine-{number}" for number in range(2000)), key=lambda id: former_key(id, 0))[
        :20
    ]
    rows = [answer(FIRST, number) for number in range(1980)]
    write(
        task.log,
        "answers",
        FIRST,
        [*rows, *(answer(FIRST, 0, request_id=request_id) for request_id in picked)],
    )
    drawn_ids = drawn(task, num_rows=500)["request_id"].to_pylist()
    assert len(drawn_ids) == 500
    assert (
        0 <= sum(request_id in picked for request_id in drawn_ids) <= 13
    )  # 5 expected; four standard errors


def test_a_client_without_the_secret_cannot_pick_ids_that_are_drawn(task: Task) -> None:
    """Another secret draws other rows, so nothing that a client can compute tells which rows are
    drawn."""
    write(task.log, "answers", FIRST, [answer(FIRST, number) for number in range(1000)])
    ours = set(drawn(task, num_rows=500)["request_id"].to_pylist())
    stored = DrawSecret(key=(b"t" * 32).hex()).model_dump_json()
    storage.write_bytes(TaskPaths(task.recipe.task_uri).draw_secret, stored.encode())
    assert len(ours & set(drawn(task, num_rows=500)["request_id"].to_pylist())) == pytest.approx(
        250, abs=40
    )


def test_answers_of_a_canary_are_drawn_first_and_those_of_a_shadow_are_not(task: Task) -> None:
    rows = [answer(FIRST, number, subject=f"s{number % 50}") for number in range(400)]
    challenger = {"digest": CHALLENGER.digest}
    canary = [answer(FIRST, 1000 + number, arm="canary", **challenger) for number in range(40)]
    shadow = [answer(FIRST, number, arm="shadow", **challenger) for number in range(40)]
    write(task.log, "answers", FIRST, [*rows, *canary, *shadow])
    task.canary = 0.1

    def export(num_rows: int, *, challenger: str | None = CHALLENGER.digest) -> set[str]:
        table = drawn(task, num_rows=num_rows, challenger=challenger)
        return set(table["request_id"].to_pylist())

    compared = {row["request_id"] for row in canary}
    for row in rows:
        unit = unit_of(row["subject"], challenger=CHALLENGER.digest, secret=SECRET)
        if unit < control_share(0.1) * CODES:
            compared.add(row["request_id"])
    assert export(len(compared)) == compared
    assert export(20) < compared
    assert len(export(1000)) == 440
    for other in ("another", None):
        assert export(1000, challenger=other) == {row["request_id"] for row in rows}


def test_the_last_imported_label_of_a_text_counts(task: Task) -> None:
    write(task.log, "answers", FIRST, [answer(FIRST, 0)])
    table, kept = drawn(task, num_rows=1), []
    for label in ("a", "b", "a", "b", "a"):
        kept.append(import_with(task, table, [label])[0])
        assert import_with(task, table, [label])[0] == kept[-1]  # the same file is stored once
        assert audited_rows(task.recipe, since=LONG_AGO).labels == (label,)
    assert audit_files(task.recipe.task_uri) == kept
    assert len(set(kept)) == 5


def test_texts_filled_in_by_people_are_redacted(task: Task) -> None:
    write(task.log, "answers", FIRST, [answer(FIRST, number, text=None) for number in range(2)])
    kept, num = import_with(
        task, drawn(task, num_rows=2), ["a", "b"], text=["ann.lee@example.org is ill", None]
    )
    assert num == 2
    assert pq.read_table(kept.removeprefix("file://"))["text"].to_pylist() == [
        "[email] is ill",
        None,
    ]
    assert audited_rows(task.recipe, since=LONG_AGO).texts == ("[email] is ill",)


def test_a_labelled_row_without_an_id_is_rejected(task: Task) -> None:
    write(task.log, "answers", FIRST, [answer(FIRST, number) for number in range(2)])
    table = drawn(task, num_rows=2)
    ids = table["request_id"].to_pylist()
    with pytest.raises(AuditError, match="1 labelled rows without request_id, row or at"):
        import_with(task, table, ["a", "b"], request_id=[ids[0], None])
    assert import_with(task, table, ["a", None], request_id=[ids[0], None])[1] == 1


@pytest.mark.parametrize(
    "days", ["2026-03-07:2026-03-01", "2026-03-01", "2026-03-01:", "1 March:2 March"]
)
def test_days_that_are_not_a_range_are_rejected(days: str) -> None:
    with pytest.raises(AuditError, match="--days is "):
        parse_days(days)
    assert parse_days("2026-02-28:2026-03-01") == [FIRST - timedelta(days=1), FIRST]


def test_audited_rows_have_their_group_and_the_split_key_of_their_subject_or_request(
    task: Task,
) -> None:
    subjects = ["s", "s", "t", None, None, None]
    stated = [None, "{}", '{"sex": null}', '{"sex": "f"}', '{"sex": "f"}', '{"sex": "f"}']
    rows = []
    for number, (subject, attributes) in enumerate(zip(subjects, stated, strict=True)):
        rows.append(answer(FIRST, number, subject=subject, attributes=attributes))
    rows[5] |= {"request_id": rows[4]["request_id"], "row": 1}
    write(task.log, "answers", FIRST, rows)
    table = drawn(task, num_rows=6)
    import_with(task, table, ["a"] * 6)
    audited = audited_rows(task.recipe, since=LONG_AGO)
    requests = [f"{FIRST}-{number}" for number in (3, 4, 4)]
    assert sorted(audited.split_keys or ()) == [*requests, "s", "s", "t"]
    assert sorted(audited.groups["sex"]) == [NO_GROUP] * 3 + ["f"] * 3
    last = max(table["at"].to_pylist())
    assert len(audited_rows(task.recipe, since=last)) == table["at"].to_pylist().count(last)
    assert len(audited_rows(task.recipe, since=last + timedelta(seconds=1))) == 0
