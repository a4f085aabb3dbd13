"""Processes that train together over gloo."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def on_ranks(num_ranks: int, work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Call `work(folder, *arguments)` on each rank of a process group."""
    with TemporaryDirectory() as store:
        uri = f"file://{store}/store"
        spawn(_run_rank, (num_ranks, uri, work, folder, *arguments), nprocs=num_ranks)  # type: ignore[no-untyped-call]


def _run_rank(
    rank: int, num_ranks: int, uri: str, work: Callable[..., None], *arguments: Any
) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    gc.freeze()  # each engine's end collects garbage, and the imported modules take a second
    dist.init_process_group("gloo", init_method=uri, rank=rank, world_size=num_ranks)
    work(*arguments)
    dist.barrier()
    dist.destroy_process_group()
