"""Report that a GPU does not have enough memory, with the next attempt or changes of the recipe."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from tailorbird.config.training import TrainingConfig
from training.engine.memory_estimate import ADVICE
from training.errors import OutOfMemory


@contextmanager
def out_of_memory_reported(
    config: TrainingConfig, *, micro_batch_tokens: int | None = None
) -> Iterator[None]:
    """Raise OutOfMemory, with advice, if the block runs out of GPU memory.

    `micro_batch_tokens` are those of the micro-batch that the block processes; None if it processes
    something else.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        text, _, _ = str(error).partition(". GPU ")  # the rest describes the allocator
        half = _half(config, micro_batch_tokens)
        raise OutOfMemory(
            f"{text}; {ADVICE}", dist.get_world_size(), half
        ) from None  # without the traceback's tensors


def _half(config: TrainingConfig, micro_batch_tokens: int | None) -> int | None:
    """Return half of the tokens, or None if the micro-batch is a row that exceeds the limit and
    cannot be split."""
    if micro_batch_tokens is None or micro_batch_tokens > (
        config.batch_tokens or micro_batch_tokens
    ):
        return None
    return micro_batch_tokens // 2
