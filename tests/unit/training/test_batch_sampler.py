"""The order of rows: every row once an epoch, the same again for the same seed, shared out among ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.batch_sampler import epoch_batches, num_batches, rank_rows

some_lengths = st.lists(st.integers(1, 64), min_size=1, max_size=400).map(lambda lengths: np.array(lengths))
batch_sizes = st.integers(1, 40)


@given(lengths=some_lengths, batch_size=batch_sizes, seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_row_once(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


@given(lengths=some_lengths, batch_size=batch_sizes)
def test_batches_are_counted_exactly(lengths: np.ndarray, batch_size: int) -> None:
    batches = epoch_batches(lengths, batch_size=batch_size, seed=0, epoch=0)
    assert num_batches(len(lengths), batch_size=batch_size) == len(batches)


@given(lengths=some_lengths, batch_size=batch_sizes, num_ranks=st.integers(1, 5))
def test_ranks_get_disjoint_rows_that_make_up_the_batch(lengths: np.ndarray, batch_size: int, num_ranks: int) -> None:
    for batch in epoch_batches(lengths, batch_size=batch_size, seed=1, epoch=0):
        shares = [rank_rows(batch, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        assert sorted(np.concatenate(shares)) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(lengths=some_lengths, seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_the_same_seed_and_epoch_give_the_same_order(lengths: np.ndarray, seed: int, epoch: int) -> None:
    one, other = (epoch_batches(lengths, batch_size=8, seed=seed, epoch=epoch) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_another_seed_or_epoch_gives_another_order() -> None:
    lengths = np.ones(500, dtype=np.int64)
    orders = {
        tuple(np.concatenate(epoch_batches(lengths, batch_size=8, seed=seed, epoch=epoch)).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_rows_of_like_length_go_together_so_that_little_is_padded() -> None:
    lengths = np.random.default_rng(0).integers(3, 64, size=2048)

    def padded(batches: list[np.ndarray]) -> float:
        return 1 - int(lengths.sum()) / sum(int(lengths[batch].max()) * len(batch) for batch in batches)

    at_random = np.array_split(np.random.default_rng(1).permutation(len(lengths)), 64)
    assert padded(epoch_batches(lengths, batch_size=32, seed=0, epoch=0)) < 0.1 < padded(at_random)
