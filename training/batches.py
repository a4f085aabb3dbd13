"""The micro-batches of each step of a rank, collated ahead of their use."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from tailorbird.config.training import TrainingConfig
from tailorbird.data.tokenized import TokenizedRows
from training.batch import Batch
from training.dataset import ahead, rank_rows, steps
from training.task import TaskRuntime

STEPS_AHEAD = 2  # steps that are collated while another one runs


@dataclass(frozen=True)
class StepBatches:
    """A step of this rank. The weighted sum of the micro-batches' losses is the rank's share of the
    mean loss.

    The mean of the shares over the ranks is the mean loss of the step's rows.
    """

    batches: tuple[tuple[Batch, float], ...]  # micro-batches with their weights
    row_ids: tuple[str, ...]  # rows of the step on all ranks
    num_tokens: int  # tokens of this rank's rows, without padding


@contextmanager
def collated_steps(
    runtime: TaskRuntime, config: TrainingConfig, *, epoch: int, start: int
) -> Iterator[Iterator[StepBatches]]:
    """Yield an iterator over the steps of an epoch from step `start`, which a thread collates
    ahead."""
    select_gpu = None
    if torch.cuda.is_available():
        select_gpu = partial(torch.cuda.set_device, torch.cuda.current_device())
    with closing(steps(runtime.train, config, epoch=epoch, start=start)) as uncollated:
        step_batches = (
            _collate_step(window, batch, config, runtime=runtime) for window, batch in uncollated
        )
        with closing(ahead(step_batches, number=STEPS_AHEAD, initializer=select_gpu)) as collated:
            yield collated


def _collate_step(
    window: TokenizedRows,
    batch: NDArray[np.int64],
    config: TrainingConfig,
    *,
    runtime: TaskRuntime,
) -> StepBatches:
    rank = dist.get_rank()
    num_ranks = dist.get_world_size()
    # The mean over the ranks is the mean over the batch.
    share = runtime.weight(window, batch) / num_ranks
    batches = []
    for rows in micro_batches(window.lengths, batch, config, num_ranks=num_ranks)[rank]:
        weight = 1 / share
        if len(rows) == 0:  # as a rank or micro-batch may be; it computes one row without weight
            weight = 0.0
            rows = np.zeros(1, dtype=np.int64)
        collated = runtime.collate(config, window, rows)
        if torch.cuda.is_available():
            collated = collated.pinned()
        batches.append((collated, weight))
    return StepBatches(
        batches=tuple(batches),
        row_ids=tuple(window.row_ids[row] for row in batch),
        num_tokens=int(window.lengths[rank_rows(batch, rank=rank, num_ranks=num_ranks)].sum()),
    )


def micro_batches(
    lengths: NDArray[np.int64], batch: NDArray[np.int64], config: TrainingConfig, *, num_ranks: int
) -> list[list[NDArray[np.int64]]]:
    """Return the rows of each micro-batch of each rank. All ranks have the same number, and some
    may be empty.

    `lengths` are those of the window. With `batch_tokens`, a micro-batch has at most that many
    tokens, if each of its rows were padded to the longest, unless it is a single row.
    """
    shares = [rank_rows(batch, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    if config.batch_tokens is None:
        return [np.array_split(rows, config.accumulation_steps(num_ranks)) for rows in shares]
    split = [_within(rows, lengths, max_tokens=config.batch_tokens) for rows in shares]
    most = max(map(len, split))
    return [parts + [np.zeros(0, dtype=np.int64)] * (most - len(parts)) for parts in split]


def _within(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], *, max_tokens: int
) -> list[NDArray[np.int64]]:
    """Split rows into the fewest micro-batches of similar lengths, each of at most `max_tokens`
    padded tokens."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    parts: list[NDArray[np.int64]] = []
    while len(ordered):
        size = max(1, max_tokens // int(lengths[ordered[0]]))
        parts.append(ordered[:size])
        ordered = ordered[size:]
    return parts
