"""The rows of each step: every row once per epoch, the same order for the same seed, in memory or
sharded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.sharding.shards import Shards, write_shard_file
from tailorbird.data.tokenized import TokenLists
from tests.unit.training.small import config_of, rows_of
from training.dataset import (
    TrainingDataset,
    epoch_batches,
    num_steps,
    steps,
)

SIZES = (700, 900, 1100)
CONFIG = config_of(batch_size=8)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    uri, first = tmp_path_factory.mktemp("shards").as_uri(), 0
    for number, size in enumerate(SIZES):
        with write_shard_file(uri, number) as writer:
            rows, tokens = rows_of(size, first=first)
            writer.add(rows.row_ids, TokenLists(tokens, labels=rows.labels))
        first += size
    return Shards(uri, SIZES, ("0", "1", "2"), window_rows=512)


def step_rows(rows: TrainingDataset, *, epoch: int, start: int = 0) -> list[list[str]]:
    """Return the row ids of each step."""
    return [
        [window.row_ids[row] for row in batch]
        for window, batch in steps(rows, CONFIG, epoch=epoch, start=start)
    ]


def test_each_epoch_has_every_sharded_row_once_in_a_new_order(sharded: Shards) -> None:
    orders = []
    for epoch in (0, 1):
        batches = step_rows(sharded, epoch=epoch)
        assert len(batches) == num_steps(sharded, CONFIG, epoch=epoch)
        assert step_rows(sharded, epoch=epoch, start=200) == batches[200:]
        orders.append([row_id for batch in batches for row_id in batch])
        assert sorted(orders[-1], key=int) == [str(index) for index in range(sum(SIZES))]
    assert orders[0] != orders[1]
    assert orders[0] == [row_id for batch in step_rows(sharded, epoch=0) for row_id in batch]


row_lengths = st.lists(st.integers(1, 64), min_size=1, max_size=400).map(
    lambda lengths: np.array(lengths)
)
batch_sizes = st.integers(1, 40)


@given(lengths=row_lengths, batch_size=batch_sizes, seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_has_every_row_once(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_batches_of_similar_length_reduce_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 64, size=2048)
    batches = epoch_batches(lengths, batch_size=32, seed=0, epoch=0)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert int(lengths.sum()) > 0.9 * padded  # about half of the tokens at random
