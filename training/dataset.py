"""The rows of each training step, from memory or from shards on S3.

They depend only on seed, epoch and step, so a resumed training sees the same batches.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.training import TrainingConfig
from tailorbird.data.length_batches import length_batches
from tailorbird.data.sharding.shards import Shards, window_chunks
from tailorbird.data.tokenized import TokenizedRows

SORTED_BATCHES = 64
"""Number of batches whose rows are sorted by length together. More batches need less padding; fewer batches give a more
random order. On the terms of ICD-10-CM, with batches of 128 rows and two ranks, padding is 7% of the tokens with 32
batches and 4.5% with 64."""


class TrainingDataset(Protocol):
    """Tokenized training rows in windows. The rows of a window depend only on seed and epoch."""

    def __len__(self) -> int:
        """Return the number of rows of an epoch."""

    def sizes(self, config: TrainingConfig, *, epoch: int) -> list[int]:
        """Return the number of rows of each window of an epoch."""

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> TokenizedRows:
        """Return the window with this number."""

    def sample(self) -> TokenizedRows:
        """Return some or all rows, the same at each call."""


@dataclass(frozen=True)
class InMemoryDataset:
    """A dataset in memory: one window with all rows."""

    rows: TokenizedRows

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self, config: TrainingConfig, *, epoch: int) -> list[int]:  # noqa: ARG002
        return [len(self.rows)]

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> TokenizedRows:  # noqa: ARG002
        return self.rows

    def sample(self) -> TokenizedRows:
        return self.rows


@dataclass(frozen=True)
class ShardedDataset:
    """A dataset on S3: windows of random chunks of the shards. Every rank reads whole windows."""

    shards: Shards

    @cached_property
    def _chunks(self) -> NDArray[np.int64]:
        return self.shards.chunks()

    def __len__(self) -> int:
        return len(self.shards)

    def _windows(self, config: TrainingConfig, *, epoch: int) -> list[NDArray[np.int64]]:
        rows = max(self.shards.window_rows, config.batch_size * SORTED_BATCHES)
        return list(window_chunks(len(self._chunks), rows=rows, seed=config.seed, epoch=epoch))

    def sizes(self, config: TrainingConfig, *, epoch: int) -> list[int]:
        return [int(self._chunks[window, 2].sum()) for window in self._windows(config, epoch=epoch)]

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> TokenizedRows:
        return self.shards.read(self._chunks[self._windows(config, epoch=epoch)[number]])

    def sample(self) -> TokenizedRows:
        return self.shards.read(self._chunks[:1])


def num_steps(rows: TrainingDataset, config: TrainingConfig, *, epoch: int) -> int:
    """Return the number of steps of an epoch."""
    return sum(num_batches(size, batch_size=config.batch_size) for size in rows.sizes(config, epoch=epoch))


def steps(
    rows: TrainingDataset, config: TrainingConfig, *, epoch: int, start: int
) -> Generator[tuple[TokenizedRows, NDArray[np.int64]], None, None]:
    """Yield the window and the indices of the batch's rows in it, for each step of an epoch from step `start`.

    A thread reads the next window in advance. Windows before `start` are not read.
    """
    sizes, num_done, first = rows.sizes(config, epoch=epoch), 0, 0
    while first < len(sizes) and num_done + (num := num_batches(sizes[first], batch_size=config.batch_size)) <= start:
        num_done, first = num_done + num, first + 1
    with ThreadPoolExecutor(1) as reader:

        def read(number: int) -> TokenizedRows:
            return rows.window(config, epoch=epoch, number=number)

        upcoming = reader.submit(read, first) if first < len(sizes) else None
        for number in range(first, len(sizes)):
            assert upcoming is not None
            window = upcoming.result()
            upcoming = reader.submit(read, number + 1) if number + 1 < len(sizes) else None
            batches = epoch_batches(
                window.lengths, batch_size=config.batch_size, seed=config.seed, epoch=epoch, window=number
            )
            for batch in batches[max(0, start - num_done) :]:
                yield window, batch
            num_done += len(batches)


def epoch_batches(
    lengths: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int, window: int = 0
) -> list[NDArray[np.int64]]:
    """Return the row indices of each step of a window, in random order.

    Every row occurs once, in a batch of rows with similar length. `lengths` [N] are token counts. One batch may be
    smaller than `batch_size`.
    """
    generator = np.random.default_rng((seed, epoch, window))
    rows = generator.permutation(len(lengths))
    pool = batch_size * SORTED_BATCHES
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(rows), pool):
        pooled = rows[start : start + pool]
        batches += [pooled[part] for part in length_batches(lengths[pooled], max_rows=batch_size, longest_first=False)]
    return [batches[index] for index in generator.permutation(len(batches))]


def rank_rows(batch: NDArray[np.int64], *, rank: int, num_ranks: int) -> NDArray[np.int64]:
    """Return a rank's rows of a batch. All ranks get similar lengths, because the batch is sorted by length."""
    return batch[rank::num_ranks]


def num_batches(num_rows: int, *, batch_size: int) -> int:
    """Return the number of batches that `epoch_batches` returns for `num_rows` rows."""
    full, rest = divmod(num_rows, batch_size * SORTED_BATCHES)
    return full * SORTED_BATCHES + -(-rest // batch_size)
