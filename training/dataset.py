"""The rows of each step, from memory or shards on S3: they depend on seed, epoch and step only, for exact resumes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.training import TrainingConfig
from tailorbird.data.length_batches import length_batches
from tailorbird.data.rows import Rows
from tailorbird.data.sharding.shards import Shards, window_chunks
from tailorbird.data.tasks import DataTask
from tailorbird.data.tokenized import TokenizedRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SORTED_BATCHES = 64
"""Batches whose rows are sorted by length together: enough to waste little padding, few enough to stay random. On
ICD-10-CM's terms, with batches of 128 for two ranks, 7 % of the tokens are padding with 32, 4.5 % with 64."""


class TrainingDataset(Protocol):
    """Tokenized training rows in windows; the rows of a window depend on seed and epoch only."""

    def __len__(self) -> int:
        """Return the number of rows of an epoch."""

    def sizes(self, config: TrainingConfig, *, epoch: int) -> list[int]:
        """Return the number of rows of each window of an epoch."""

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> TokenizedRows:
        """Return the window of this number."""

    def sample(self) -> TokenizedRows:
        """Return a few rows or all, the same at each call."""


@dataclass(frozen=True)
class InMemoryDataset:
    """One window of all rows."""

    rows: TokenizedRows

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self, config: TrainingConfig, *, epoch: int) -> list[int]:  # noqa: ARG002  it is always the same
        return [len(self.rows)]

    def window(self, config: TrainingConfig, *, epoch: int, number: int) -> TokenizedRows:  # noqa: ARG002
        return self.rows

    def sample(self) -> TokenizedRows:
        return self.rows


@dataclass(frozen=True)
class ShardedDataset:
    """Windows of random chunks of the shards. Every rank reads the whole window."""

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


def load_dataset(
    train: Rows | Shards,
    task: DataTask,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    classes: Sequence[str] = (),
) -> TrainingDataset:
    """Return the training rows as tokens; rows in memory are tokenized now. Raises DataError."""
    if isinstance(train, Shards):
        return ShardedDataset(train)
    tokens = task.encode(train, tokenizer=tokenizer, max_length=max_length)
    return InMemoryDataset(TokenizedRows.from_lists(train.row_ids, tokens, classes=classes))


def num_steps(rows: TrainingDataset, config: TrainingConfig, *, epoch: int) -> int:
    """Return the number of steps of an epoch."""
    return sum(num_batches(size, batch_size=config.batch_size) for size in rows.sizes(config, epoch=epoch))


def steps(
    rows: TrainingDataset, config: TrainingConfig, *, epoch: int, start: int
) -> Iterator[tuple[TokenizedRows, NDArray[np.int64]]]:
    """Yield the window of each step of an epoch from step `start`, and the indices of the batch's rows in it.

    The next window is read in a thread while one is trained on; windows before `start` are not read.
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
    """Return each step's row indices in a window: every row once, rows of similar length together, in random order.

    `lengths` [N] are token counts; one batch may be smaller than `batch_size`.
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
    """Return a rank's rows of a batch, of the same lengths as the other ranks' (the batch is sorted by length)."""
    return batch[rank::num_ranks]


def num_batches(num_rows: int, *, batch_size: int) -> int:
    """Return the number of batches that `epoch_batches` makes of these rows."""
    full, rest = divmod(num_rows, batch_size * SORTED_BATCHES)
    return full * SORTED_BATCHES + -(-rest // batch_size)
