"""Micro-batches: token budgets, every row once, and errors of the thread that collates."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.training.small import config_of, reports_of, small_runtime
from training.batch import Batch
from training.batches import micro_batches
from training.classification_task import ClassifierRuntime, validation_batches


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60).map(np.array),
    num_ranks=st.integers(1, 4),
    batch_tokens=st.integers(64, 300),
)
def test_micro_batches_stay_within_the_token_budget_and_contain_each_row_once(
    lengths: NDArray[np.int64], num_ranks: int, batch_tokens: int
) -> None:
    batch, config = np.arange(len(lengths)), config_of(batch_tokens=batch_tokens)
    ranks = micro_batches(lengths, batch, config, num_ranks=num_ranks)
    # Ranks wait for each other in each micro-batch, and none only waits.
    [number] = {len(parts) for parts in ranks}
    assert number <= 1 or any(len(parts[-1]) for parts in ranks)
    rows = [np.concatenate(parts) for parts in ranks]
    assert sorted(np.concatenate(rows)) == batch.tolist()
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    for parts in ranks:
        assert all(len(part) * lengths[part].max(initial=0) <= batch_tokens for part in parts)


def test_a_row_above_the_token_budget_is_a_micro_batch_of_its_own() -> None:
    parts = micro_batches(
        np.array([50, 9, 9]), np.arange(3), config_of(batch_tokens=20), num_ranks=1
    )[0]
    assert [part.tolist() for part in parts] == [[0], [1, 2]]


def test_an_error_in_the_thread_reaches_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Batch:
        raise RuntimeError("no such row")

    monkeypatch.setattr(ClassifierRuntime, "collate", broken)
    with pytest.raises(RuntimeError, match="no such row"):
        reports_of(small_runtime(dropout=0.0))


def test_a_validation_on_a_gpu_has_passes_by_tokens_and_work_for_every_rank() -> None:
    lengths = np.full(512, 10)
    sizes = {
        (device, num_ranks): [
            len(rows) for rows in validation_batches(lengths, num_ranks=num_ranks, device=device)
        ]
        for device, num_ranks in (("cpu", 8), ("cuda", 1), ("cuda", 4))
    }
    assert sizes == {("cpu", 8): [64] * 8, ("cuda", 1): [512], ("cuda", 4): [128] * 4}
    long = validation_batches(np.full(64, 8192), num_ranks=1, device="cuda")
    assert {len(rows) for rows in long} == {2}
