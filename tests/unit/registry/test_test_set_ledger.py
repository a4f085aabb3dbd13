"""Tests of the test-set ledger. Integration tests cover concurrent accesses on a real S3 server."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tailorbird import storage
from tailorbird.registry import test_set_ledger
from tailorbird.registry.test_set_ledger import (
    Hashes,
    TestSetAccess,
    digest_of_rows,
    next_access,
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


def rows_uri(task_uri: str, rows: Hashes) -> str:
    return TaskPaths(task_uri).test_rows(digest_of_rows(np.unique(rows))[:16])


def test_the_share_of_alpha_is_the_mean_over_the_rows() -> None:
    assert [share_of_alpha(np.array([number])) for number in (1, 2, 3)] == [1, 1 / 6, 1 / 12]
    assert share_of_alpha(np.array([1, 1, 2, 3])) == pytest.approx((1 + 1 + 1 / 6 + 1 / 12) / 4)
    assert sum(share_of_alpha(np.array([number])) for number in range(1, 10_000)) < 1.5


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
    access(task_uri)
    entry = access(task_uri, HASHES[50:150])
    claims = {"number": 1, "num_seen": 0, "num_rows": 1, "alpha_share": 1.0}
    assert recount_access(task_uri, access=entry.model_copy(update=claims)) == entry
    unknown = entry.model_copy(update={"models": ("c",)})
    assert recount_access(task_uri, access=unknown) is None
    storage.delete(rows_uri(task_uri, HASHES[50:150]))
    with pytest.raises(s3.StorageError, match=r"is missing or .*; restore the file from a copy"):
        recount_access(task_uri, access=entry)


def test_the_use_of_the_rows_is_known_without_recording_an_access(task_uri: str) -> None:
    assert next_access(task_uri, rows=HASHES[:100]) == row_use(np.full(100, 1))
    access(task_uri, HASHES[:50])
    access(task_uri, HASHES[:100])
    expected = row_use(np.repeat([3, 2, 1], [50, 50, 100]))
    assert next_access(task_uri, rows=HASHES[:200]) == expected
    assert (expected.number, expected.num_rows, expected.num_seen) == (3, 200, 100)
    assert len(read_test_accesses(task_uri)) == 2


@pytest.mark.parametrize(("failing", "numbers"), [("_add_to_order", [1, 2]), ("now", [2, 1])])
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


def test_a_damaged_ledger_is_refused_and_not_changed(task_uri: str) -> None:
    access(task_uri)
    for uri in (rows_uri(task_uri, HASHES[:100]), TaskPaths(task_uri).test_set_order):
        stored = storage.read_bytes(uri)
        damaged = bytes([stored[0] ^ 1]) + stored[1:-1]
        storage.write_bytes(uri, damaged)
        for use in (
            partial(access, model="b"),
            partial(next_access, rows=HASHES),
        ):
            with pytest.raises(s3.StorageError, match=f"{uri} .*; restore the file from a copy"):
                use(task_uri)
        assert storage.read_bytes(uri) == damaged
        storage.write_bytes(uri, stored)
