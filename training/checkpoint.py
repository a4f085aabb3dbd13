"""Checkpoints between two steps: DeepSpeed's shards, the progress and random states of each rank, and their upload."""

import re
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
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
from tailorbird.storage import download_folder, folder_sizes
from training.engine.deepspeed_private import (
    checkpoint_bytes,
    convert_to_universal,
    inner_optimizer,
    mapped_files,
)
from training.engine.node_disk import gather, node_name, require_room
from training.errors import staging_directory, temporary_directory
from training.loop import build_engine
from training.reports import Progress
from training.safe_checkpoint_loading import UnusableCheckpoint, find_unsafe_file, tensors_only
from training.task import TaskRuntime, means_over_ranks

TAG = "step"
CONVERSION_COPIES = 3
"""Copies of a checkpoint on the disk while it is converted: its shards, their slices, and the result."""
MAX_THREADS = 16  # of a conversion; each holds a parameter and its copy in memory
_PROGRESS = TypeAdapter(Progress)


def save(engine: Any, config: TrainingConfig, *, folder: Path, progress: Progress) -> None:
    """Write this rank's part of a checkpoint. Every rank must call it, each with its own folder."""
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=config.method == "lora")
    (folder / f"progress-{dist.get_rank()}.json").write_bytes(_PROGRESS.dump_json(progress))
    save_file(_random_states(), folder / f"rng-{dist.get_rank()}.safetensors")


def stage(engine: Any, config: TrainingConfig, *, progress: Progress) -> Path:
    """Write this rank's part of a checkpoint to a new local folder, which the caller deletes after its upload.

    Raises DiskFull on every rank, before anything is written, if a node does not have enough room.
    """
    require_room(checkpoint_bytes(engine, exclude_frozen=config.method == "lora"), what="a checkpoint")
    with staging_directory() as folder:
        save(engine, config, folder=folder, progress=progress)
    return folder


def resume(config: TrainingConfig, runtime: TaskRuntime, *, uri: str) -> tuple[Any, Progress]:
    """Return an engine in the state of the checkpoint at `uri`, and this rank's progress.

    The workers of a node share one download of the files that they need. If the number of ranks has changed, they also
    share the conversion of the shards to DeepSpeed's universal checkpoint, and dropout masks differ from an
    uninterrupted training. No code from the files is run. Raises UnusableCheckpoint on every rank if a file is unsafe
    or invalid.
    """
    sizes = folder_sizes(uri)
    num_ranks = sum(name.startswith("progress-") for name in sizes)
    converts = num_ranks != dist.get_world_size() and config.zero_stage > 0  # stage 0 has no shards
    ranks = local_ranks()
    needed = files_to_download(sizes, ranks=ranks, num_ranks=dist.get_world_size(), zero_stage=config.zero_stage)
    num_bytes = sum(sizes[name] for name in needed) * (CONVERSION_COPIES if converts else 1)
    with node_directory() as (parent, leads):
        require_room(num_bytes if leads else 0, what="the checkpoint to resume from")
        folder = parent / "checkpoint"
        if leads:
            download_folder(uri, folder, includes=needed.__contains__)
        unsafe = find_unsafe_file(folder) if leads else None
        if means_over_ranks(float(unsafe is not None))[0]:
            raise UnusableCheckpoint(
                f"checkpoint {uri} was changed after it was written: {unsafe or 'see the error of another worker'}; "
                "check the write permissions of this path"
            )
        with tensors_only(), mapped_files() if converts else nullcontext():
            if converts and leads:
                # The other workers of the node wait meanwhile.
                num_threads = min(MAX_THREADS, len(ranks) * config.cpus_per_worker)
                convert_to_universal(folder / TAG, parent / "universal" / TAG, num_threads=num_threads)
            dist.barrier()
            engine = build_engine(_universal(config) if converts else config, runtime)
            _restore(engine, config, folder=parent / "universal" if converts else folder, uri=uri)
        if num_ranks == dist.get_world_size():
            states = load_file(folder / f"rng-{dist.get_rank()}.safetensors")
            torch.set_rng_state(states["cpu"])
            if "cuda" in states:
                torch.cuda.set_rng_state(states["cuda"])
        return engine, _progress(folder, num_ranks=num_ranks)


def files_to_download(
    names: Iterable[str], *, ranks: AbstractSet[int], num_ranks: int, zero_stage: int
) -> frozenset[str]:
    """Return the files of a checkpoint that a node with these ranks needs, to resume with `num_ranks` ranks.

    With as many ranks as before, these are the shards of its own ranks; with another number, those of all ranks. The
    states of the random generators are only needed in the first case. The progress of all ranks is always needed.
    """
    names = frozenset(names)
    unchanged = sum(name.startswith("progress-") for name in names) == num_ranks

    def is_needed(name: str) -> bool:
        of_rank = re.search(r"(zero_pp_rank_|rng-)(\d+)", name)
        if of_rank is None:
            return True
        return int(of_rank[2]) in ranks if unchanged else of_rank[1] != "rng-" and zero_stage > 0

    return frozenset(filter(is_needed, names))


def _restore(engine: Any, config: TrainingConfig, *, folder: Path, uri: str) -> None:
    optimizer = inner_optimizer(engine)
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=config.method != "lora")
    if path is None:
        raise UnusableCheckpoint(f"checkpoint {uri} contains no state")
    # At stage 3, a universal checkpoint gives all groups the learning rate and weight decay of the first group, and all
    # parameters share one step tensor. It is on the CPU, but fused AdamW requires it on the device of its parameter.
    for group, values, rate in zip(optimizer.param_groups, options, engine.lr_scheduler.get_last_lr(), strict=True):
        group.update(values | {"lr": rate})
    for parameter, state in optimizer.state.items():
        state["step"] = state["step"].to(parameter.device, copy=True)


def _progress(folder: Path, *, num_ranks: int) -> Progress:
    """Return this rank's progress.

    If the number of ranks has changed, return the progress of rank 0 with the token counts of all former ranks.
    """
    ranks = [_PROGRESS.validate_json((folder / f"progress-{rank}.json").read_bytes()) for rank in range(num_ranks)]
    if num_ranks == dist.get_world_size():
        return ranks[dist.get_rank()]
    return replace(ranks[0], tokens=sum(rank.tokens for rank in ranks), padded=sum(rank.padded for rank in ranks))


def _universal(config: TrainingConfig) -> TrainingConfig:
    options = config.deepspeed.get("checkpoint", {}) | {"load_universal": True}
    return config.model_copy(update={"deepspeed": config.deepspeed | {"checkpoint": options}})


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


@contextmanager
def node_directory() -> Iterator[tuple[Path, bool]]:
    """Yield a temporary folder that the workers of a node share, and True on the one worker that fills it.

    The folder is deleted when all workers have left the block. Every rank must enter it.
    """
    leader = min(rank for rank, name in enumerate(gather(node_name())) if name == node_name())
    leads = leader == dist.get_rank()
    with temporary_directory() if leads else nullcontext() as own:
        yield Path(gather(str(own))[leader]), leads
        dist.barrier()


def local_ranks() -> frozenset[int]:
    """Return the ranks of the workers on this node. Every rank must call it."""
    return frozenset(rank for rank, name in enumerate(gather(node_name())) if name == node_name())


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
        running, self._running = self._running, None
        if running is not None:
            running.result()
