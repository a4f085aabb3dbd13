"""Checkpoints between two steps: DeepSpeed's shards, the progress and random states of each rank,
and their upload."""

import re
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from tailorbird.config.training import TrainingConfig
from tailorbird.storage import download_folder, folder_sizes, read_bytes
from training.engine.deepspeed_private import destroy_engine
from training.engine.resharding import load_resharded
from training.errors import staging_directory, temporary_directory
from training.loop import build_engine
from training.ranks import any_rank, gather, ranks_of_node
from training.reports import Progress
from training.safe_checkpoint_loading import (
    CHANGED,
    UnusableCheckpoint,
    find_unsafe_file,
    tensors_only,
)
from training.task import TaskRuntime

TAG = "step"
_PROGRESS = TypeAdapter(Progress)


def save(engine: Any, config: TrainingConfig, *, folder: Path, progress: Progress) -> None:
    """Write this rank's part of a checkpoint. Every rank must call it, each with its own folder."""
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=config.method == "lora")
    (folder / f"progress-{dist.get_rank()}.json").write_bytes(_PROGRESS.dump_json(progress))
    save_file(_random_states(), folder / f"rng-{dist.get_rank()}.safetensors")


def stage(engine: Any, config: TrainingConfig, *, progress: Progress) -> Path:
    """Write this rank's part of a checkpoint to a new local folder, which the caller deletes after
    its upload."""
    with staging_directory() as folder:
        save(engine, config, folder=folder, progress=progress)
    return folder


def resume(config: TrainingConfig, runtime: TaskRuntime, *, uri: str) -> tuple[Any, Progress]:
    """Return an engine in the state of the checkpoint at `uri`, and this rank's progress.

    The workers of a node share one download of the files that they need. If the number of ranks has
    changed, each rank reads its part of the shards without a download, and dropout masks differ
    from an uninterrupted training. No code from the files is run. Raises UnusableCheckpoint on
    every rank if a file is unsafe or invalid.
    """
    names = folder_sizes(uri)
    num_ranks = len([name for name in names if name.startswith("progress-")])
    if num_ranks != dist.get_world_size() and config.zero_stage > 0:  # stage 0 has no shards
        engine = build_engine(config, runtime)
        try:
            load_resharded(engine, uri=uri, names=names, num_saved=num_ranks)
        except UnusableCheckpoint:
            destroy_engine(engine)  # a worker group of a sweep trains the next trial
            raise
    else:
        engine = _load(config, runtime, uri=uri, names=names, num_ranks=num_ranks)
    return engine, _progress(uri, num_ranks=num_ranks)


def _load(
    config: TrainingConfig,
    runtime: TaskRuntime,
    *,
    uri: str,
    names: Iterable[str],
    num_ranks: int,
) -> Any:
    """Return an engine in the state of the files that this rank wrote."""
    needed = files_to_download(
        names, ranks=ranks_of_node(), changed=num_ranks != dist.get_world_size()
    )
    with node_directory() as (parent, leads):
        folder = parent / "checkpoint"
        unsafe = None
        if leads:
            download_folder(uri, folder, includes=needed.__contains__)
            unsafe = find_unsafe_file(folder)
        if any_rank(unsafe is not None):
            raise UnusableCheckpoint(
                CHANGED.format(uri=uri, problem=unsafe or "see the error of another worker")
            )
        engine = build_engine(config, runtime)
        with tensors_only():
            path, _ = engine.load_checkpoint(
                str(folder), tag=TAG, load_module_strict=config.method != "lora"
            )
        if path is None:
            raise UnusableCheckpoint(f"checkpoint {uri} contains no state")
        if num_ranks == dist.get_world_size():
            states = load_file(folder / f"rng-{dist.get_rank()}.safetensors")
            torch.set_rng_state(states["cpu"])
            if "cuda" in states:
                torch.cuda.set_rng_state(states["cuda"])
    return engine


def files_to_download(
    names: Iterable[str], *, ranks: Container[int], changed: bool
) -> frozenset[str]:
    """Return the files of a checkpoint that a node with these ranks needs, except for the progress
    of the ranks.

    With as many ranks as before, these include the shards and the random states of its own ranks.
    If the number of ranks has changed, the checkpoint is one of stage 0, which has no shards, and
    no random states are needed.
    """

    def is_needed(name: str) -> bool:
        of_rank = re.search(r"(zero_pp_rank_|rng-|progress-)(\d+)", name)
        return of_rank is None or (
            int(of_rank[2]) in ranks and of_rank[1] != "progress-" and not changed
        )

    return frozenset(filter(is_needed, names))


def _progress(uri: str, *, num_ranks: int) -> Progress:
    """Return this rank's progress.

    If the number of ranks has changed, return the progress of rank 0 with the token counts of all
    former ranks.
    """

    def of_rank(rank: int) -> Progress:
        return _PROGRESS.validate_json(read_bytes(f"{uri}/progress-{rank}.json"))

    if num_ranks == dist.get_world_size():
        return of_rank(dist.get_rank())
    ranks = [of_rank(rank) for rank in range(num_ranks)]
    return replace(
        ranks[0],
        tokens=sum(rank.tokens for rank in ranks),
        padded=sum(rank.padded for rank in ranks),
    )


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        return states | {"cuda": torch.cuda.get_rng_state()}
    return states


@contextmanager
def node_directory() -> Iterator[tuple[Path, bool]]:
    """Yield a temporary folder that the workers of a node share, and True on the one worker that
    fills it.

    The folder is deleted when all workers have left the block. Every rank must enter it.
    """
    leader = ranks_of_node()[0]
    leads = leader == dist.get_rank()
    with temporary_directory() if leads else nullcontext() as folder:
        yield Path(gather(str(folder))[leader]), leads
        dist.barrier()


class Upload:
    """An upload in a thread while training continues. At most one runs at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def start(self, upload: Callable[[], None]) -> None:
        """Call `upload` in the thread. The previous call must be over; see `wait`."""
        assert self._running is None
        self._running = self._pool.submit(upload)

    def wait(self) -> None:
        """Wait until no upload runs, and raise the error of the last one."""
        running = self._running
        self._running = None
        if running is not None:
            running.result()
