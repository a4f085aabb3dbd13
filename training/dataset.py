"""Where a training's steps get their rows from: memory, or shards on S3 of which a window at a time is in memory."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import Rows
from tailorbird.data.sharding.shards import Shards, window_chunks
from tailorbird.data.tokenized import Encoded, Encoding, encode_rows
from training.batch_sampler import SORTED_BATCHES, epoch_batches, num_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TrainingDataset(Protocol):
    """Encoded training rows in windows; which rows a window has hangs on seed and epoch alone."""

    def __len__(self) -> int:
        """Rows of an epoch."""

    def sizes(self, config: TrainingConfig, *, epoch: int) -> list[int]:
        """Rows of each window of an epoch."""

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> Encoded:
        """One window."""

    def sample(self) -> Encoded:
        """Return a few rows or all, the same at each call."""


@dataclass(frozen=True)
class InMemoryDataset:
    """All rows are one window."""

    rows: Encoded

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self, config: TrainingConfig, *, epoch: int) -> list[int]:  # noqa: ARG002  it is always the same
        return [len(self.rows)]

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> Encoded:  # noqa: ARG002
        return self.rows

    def sample(self) -> Encoded:
        return self.rows


@dataclass(frozen=True)
class ShardedDataset:
    """Windows of rows from random places; each rank reads all of the next while it trains on one."""

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

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> Encoded:
        return self.shards.read(self._chunks[self._windows(config, epoch=epoch)[number]])

    def sample(self) -> Encoded:
        return self.shards.read(self._chunks[:1])


def load_dataset(
    train: Rows | Shards, encoding: Encoding, *, tokenizer: "PreTrainedTokenizerBase", classes: Sequence[str]
) -> TrainingDataset:
    """Training rows as tokens, encoded now where they are held in memory; raises DataError."""
    if isinstance(train, Shards):
        return ShardedDataset(train)
    return InMemoryDataset(encode_rows(train, encoding, tokenizer=tokenizer, classes=classes))


def num_steps(rows: TrainingDataset, config: TrainingConfig, *, epoch: int) -> int:
    """Steps of an epoch."""
    return sum(num_batches(size, batch_size=config.batch_size) for size in rows.sizes(config, epoch=epoch))


def steps(
    rows: TrainingDataset, config: TrainingConfig, *, epoch: int, start: int
) -> Iterator[tuple[Encoded, NDArray[np.int64]]]:
    """From step `start` of an epoch on, the window of each step and its batch's places in it.

    The next window is read while one is trained on; windows before `start` are not read.
    """
    sizes, begun, first = rows.sizes(config, epoch=epoch), 0, 0
    while first < len(sizes) and begun + (done := num_batches(sizes[first], batch_size=config.batch_size)) <= start:
        begun, first = begun + done, first + 1
    with ThreadPoolExecutor(1) as reader:

        def read(number: int) -> Encoded:
            return rows.window(config, epoch=epoch, number=number)

        coming = reader.submit(read, first) if first < len(sizes) else None
        for number in range(first, len(sizes)):
            assert coming is not None
            window = coming.result()
            coming = reader.submit(read, number + 1) if number + 1 < len(sizes) else None
            batches = epoch_batches(
                window.lengths, batch_size=config.batch_size, seed=config.seed, epoch=epoch, window=number
            )
            for batch in batches[max(0, start - begun) :]:
                yield window, batch
            begun += len(batches)
