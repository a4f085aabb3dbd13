"""The torch process group of the processes that hold one model together (tensor parallelism)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

RANK_TIMEOUT = timedelta(days=1)
"""Time that a rank waits for another one, which may load weights or wait for an endpoint. Ray ends
the other ranks as soon as one fails."""


@dataclass(frozen=True)
class Group:
    """The place of this process in its process group."""

    rank: int = 0
    size: int = 1


class OtherRankFailed(RuntimeError):
    """Raised on a rank that cannot continue because another rank of its process group has
    failed."""


_current: ContextVar[Group | None] = ContextVar("group", default=None)


def current_group() -> Group:
    """Return the group that this process has joined, or a group of one."""
    return _current.get() or Group()


@contextmanager
def join_group(group: Group, *, store: Path) -> Iterator[None]:
    """Join a process group within the block, over NCCL if this process has a GPU, else over gloo.

    All ranks are on one node. They find each other by the file `store`, which must be empty or not
    exist before.
    """
    import torch
    from torch import distributed

    os.environ.setdefault(
        "NCCL_GRAPH_MIXING_SUPPORT", "0"
    )  # as transformers recommends for its CUDA graphs
    # Ray shows each rank one GPU
    gpu = torch.device("cuda", 0) if torch.cuda.is_available() else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    distributed.init_process_group(
        "nccl" if gpu is not None else "gloo",
        init_method=store.as_uri(),
        rank=group.rank,
        world_size=group.size,
        timeout=RANK_TIMEOUT,
        device_id=gpu,
    )
    token = _current.set(group)
    try:
        yield
        distributed.barrier()
        # not after an error, because it can wait for the other ranks
        distributed.destroy_process_group()
    finally:
        _current.reset(token)


def on_first_rank(function: Callable[[], T]) -> T:
    """Return the result of `function`, which only the first rank of this process's group calls.

    Every rank must call it. The result must be picklable.
    """
    group = current_group()
    if group.size == 1:
        return function()
    from torch import distributed

    result: list[Any] = [function() if group.rank == 0 else None]
    distributed.broadcast_object_list(result, src=0)
    value: T = result[0]
    return value


def wait_for_ranks() -> None:
    """Wait until every rank of this process's group has called this function."""
    if current_group().size > 1:
        from torch import distributed

        distributed.barrier()
