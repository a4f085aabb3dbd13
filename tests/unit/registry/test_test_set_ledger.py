"""Tests of the test-set ledger. Integration tests cover concurrent accesses on a real S3 server."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird import storage
from tailorbird.registry import test_set_ledger
from tailorbird.registry.test_set_ledger import (
    DIGITS,
    Hashes,
    Shard,
    TestSetAccess,
    next_access,
    parts_by_digit,
    read_test_accesses,
    record_test_access,
    recount_access,
    row_use,
    share_of_alpha,
)
from tailorbird.storage import s3
from tailorbird.storage.paths import TaskPaths

HASHES = np.random.default_rng(0).integers(2**64, size=2_000, dtype=np.uint64)


@pytest.fixture
def task_uri(tmp_path: Path) -> str:
    return f"{tmp_path.as_uri()}/task"


def access(
    task_uri: str,
    rows: Hashes = HASHES[:100],
    *,
    model: str = "a",
    protocol: str = "q",
    run: str = "s3://r",
) -> TestSetAccess:
    return record_test_access(
        task_uri, rows=rows, models=["incumbent", model], protocol=protocol, run=run
    )


def test_the_share_of_alpha_is_the_mean_over_the_rows() -> None:
    assert [share_of_alpha(np.array([number])) for number in (1, 2, 3)] == [1, 1 / 6, 1 / 12]
    assert share_of_alpha(np.array([1, 1, 2, 3])) == pytest.approx((1 + 1 + 1 / 6 + 1 / 12) / 4)
    assert sum(share_of_alpha(np.array([number])) for number in range(1, 10_000)) < 1.5


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_a_row_that_was_used_more_often_never_raises_the_share(
    numbers: list[int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(numbers) - 1))
    more = [number + (index == position) for index, number in enumerate(numbers)]
    assert 0 < share_of_alpha(np.array(more)) < share_of_alpha(np.array(numbers)) <= 1


def test_one_row_changes_the_level_only_a_little() -> None:
    shares = [share_of_alpha(np.where(np.arange(1_000) < seen, 2, 1)) for seen in range(1_001)]
    assert np.diff(shares) == pytest.approx(-(1 - 1 / 6) / 1_000)


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), max_size=8, unique_by=frozenset), st.data())
def test_a_shard_numbers_the_accesses_to_each_row(
    sets: list[set[int]], data: st.DataObject
) -> None:
    shard = Shard(np.array([], np.uint64), np.array([], np.uint64))
    for number, rows in enumerate(sets):
        shard = shard.add(np.array(sorted(rows), np.uint64), of_set=np.uint64(number))
    used = data.draw(
        st.lists(st.sampled_from(range(len(sets))), max_size=20) if sets else st.just([])
    )
    for rows in ({0}, {9}, set(range(12)), *sets):
        numbers = shard.numbers(
            np.array(sorted(rows), np.uint64), earlier=np.sort(np.array(used, np.uint64))
        )
        assert numbers.tolist() == [
            1 + sum(row in sets[number] for number in used) for row in sorted(rows)
        ]


def test_each_hash_is_in_the_shard_of_its_first_digit() -> None:
    parts = parts_by_digit(np.unique(HASHES))
    assert sum(map(len, parts.values())) == len(HASHES)
    assert {f"{row:016x}"[0] for row in parts["b"].tolist()} == {"b"}
    assert list(parts_by_digit(np.array([1, 2**64 - 1], np.uint64))) == ["0", "f"]


def test_a_repeated_test_keeps_its_entry_and_any_change_is_a_further_access(task_uri: str) -> None:
    first = access(task_uri)
    assert (first.number, first.num_rows, first.num_seen, first.alpha_share) == (1, 100, 0, 1)
    assert (
        access(task_uri, np.tile(HASHES[:100], 2), run="s3://another") == first
    )  # in any order, with copies
    further = [
        access(task_uri, model="b"),
        access(task_uri, protocol="a smaller gain"),
        access(task_uri, HASHES[:99]),
        access(task_uri.replace("task", "another-name"), model="c"),
        access(task_uri, HASHES[:150], model="b"),
    ]
    assert [(entry.number, entry.num_seen) for entry in further] == [
        (2, 100),
        (3, 100),
        (4, 99),
        (5, 100),
        (6, 100),
    ]
    assert further[-1].alpha_share == pytest.approx(
        (50 + 99 / 42 + 1 / 30) / 150
    )  # one row has four earlier accesses
    assert access(task_uri, HASHES[1_000:]).alpha_share == 1
    assert [entry.number for entry in read_test_accesses(task_uri)] == [1, 2, 3, 4, 6, 1]


def test_an_access_is_recounted_from_the_ledger(task_uri: str) -> None:
    entries = [access(task_uri), access(task_uri, model="b"), access(task_uri, HASHES[50:150])]
    assert list(read_test_accesses(task_uri)) == entries
    for entry in entries:
        claimed = entry.model_copy(
            update={"number": 1, "num_seen": 0, "num_rows": 1, "alpha_share": 1.0}
        )
        assert recount_access(task_uri, access=claimed) == entry
    unknown = entries[0].model_copy(update={"models": ("c",)})
    assert recount_access(task_uri, access=unknown) is None
    storage.delete(TaskPaths(task_uri).test_rows("3"))
    with pytest.raises(
        s3.StorageError, match="does not contain the rows of s3://r; restore the folder from a copy"
    ):
        recount_access(task_uri, access=entries[2])


def test_the_use_of_the_rows_is_known_without_recording_an_access(task_uri: str) -> None:
    assert next_access(task_uri, rows=HASHES[:100]) == row_use(np.full(100, 1))
    access(task_uri, HASHES[:50])
    access(task_uri, HASHES[:100])
    expected = row_use(np.repeat([3, 2, 1], [50, 50, 100]))
    assert next_access(task_uri, rows=HASHES[:200]) == expected
    assert (expected.number, expected.num_rows, expected.num_seen) == (3, 200, 100)
    assert len(read_test_accesses(task_uri)) == 2


def test_a_test_set_is_stored_once(task_uri: str) -> None:
    access(task_uri)
    stored = [storage.file_state(TaskPaths(task_uri).test_rows(digit)) for digit in DIGITS]
    assert access(task_uri, model="b").number == 2
    assert [storage.file_state(uri) for uri, *_ in stored] == stored


@pytest.mark.parametrize(
    ("failing", "numbers"), [("_add_to_order", [1, 2]), ("update_json", [2, 1])]
)
def test_an_interrupted_access_counts_from_its_place_in_the_order_on(
    task_uri: str, monkeypatch: pytest.MonkeyPatch, failing: str, numbers: list[int]
) -> None:
    with monkeypatch.context() as interrupted:
        interrupted.setattr(test_set_ledger, failing, lambda *_, **__: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception, match="interrupted"):
            access(task_uri)
    assert read_test_accesses(task_uri) == ()
    assert [access(task_uri, model=model).number for model in "ba"] == numbers


def test_an_access_without_models_or_rows_is_refused(task_uri: str) -> None:
    with pytest.raises(ValueError, match="there are no models"):
        record_test_access(task_uri, rows=HASHES, models=[], protocol="q", run="s3://r")
    with pytest.raises(ValueError, match="there are no test rows; give at least one"):
        access(task_uri, HASHES[:0])
    assert not storage.exists(f"{TaskPaths(task_uri).registry}/_ledger")


@pytest.mark.parametrize(
    ("name", "message"),
    [("rows/b.parquet", "a valid shard of test rows: "), ("order", "a valid order of accesses; ")],
)
def test_a_damaged_ledger_is_refused_and_not_changed(
    task_uri: str, name: str, message: str
) -> None:
    uri = f"{TaskPaths(task_uri).registry}/_ledger/{name}"
    storage.write_bytes(uri, b"damaged")
    for function in (access, lambda task_uri: next_access(task_uri, rows=HASHES)):
        with pytest.raises(
            s3.StorageError, match=f"{name} is not {message}.*restore the file from a copy"
        ):
            function(task_uri)
    assert storage.read_bytes(uri) == b"damaged"
