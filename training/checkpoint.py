"""Checkpoints between two steps: the state of the engine, the progress and the random states of
each rank, and their upload. They contain numbers and JSON, so no code runs when they are read."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from tailorbird.config.training import TrainingConfig
from tailorbird.storage import list_folder, read_bytes
from training.engine.deepspeed_private import destroy_engine
from training.engine.resharding import RankRecord, load_state, save_state
from training.errors import UnusableCheckpoint, staging_directory
from training.loop import build_engine
from training.ranks import raise_on_all_ranks
from training.reports import Progress
from training.task import TaskRuntime

RECORD = "rank-"  # prefix of the file with a rank's record


@dataclass(frozen=True)
class _SavedRank:
    """What a rank has written, except for its values and random states."""

    progress: Progress
    state: RankRecord


_SAVED_RANK = TypeAdapter(_SavedRank)


def save(engine: Any, *, folder: Path, progress: Progress) -> None:
    """Write this rank's part of a checkpoint. Every rank must call it, each with its own folder."""
    rank = dist.get_rank()
    saved = _SavedRank(progress, save_state(engine, folder))
    (folder / f"{RECORD}{rank}.json").write_bytes(_SAVED_RANK.dump_json(saved))
    random_states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_states["cuda"] = torch.cuda.get_rng_state()
    save_file(random_states, folder / f"rng-{rank}.safetensors")


def stage(engine: Any, *, progress: Progress) -> Path:
    """Write this rank's part of a checkpoint to a new local folder, which the caller deletes after
    its upload."""
    with staging_directory() as folder:
        save(engine, folder=folder, progress=progress)
    return folder


def resume(config: TrainingConfig, runtime: TaskRuntime, *, uri: str) -> tuple[Any, Progress]:
    """Return an engine in the state of the checkpoint at `uri`, and this rank's progress.

    If the number of ranks has changed, dropout masks differ from an uninterrupted training. Raises
    UnusableCheckpoint on every rank if a file is invalid or does not fit the model.
    """
    ranks = raise_on_all_ranks(lambda: _read_ranks(uri), UnusableCheckpoint)
    engine = build_engine(config, runtime)
    try:
        load_state(engine, uri=uri, records=[rank.state for rank in ranks])
        if len(ranks) == dist.get_world_size():
            raise_on_all_ranks(lambda: _restore_random_states(uri), UnusableCheckpoint)
    except UnusableCheckpoint:
        destroy_engine(engine)  # a worker group of a sweep trains the next trial
        raise
    return engine, _progress([rank.progress for rank in ranks])


def _read_ranks(uri: str) -> list[_SavedRank]:
    """Return the records of all ranks that wrote the checkpoint. Raises UnusableCheckpoint."""
    names = [entry.name for entry in list_folder(uri) if entry.name.startswith(RECORD)]
    if not names:
        raise UnusableCheckpoint(f"checkpoint {uri} contains no state")
    ranks = []
    for rank in range(len(names)):
        name = f"{RECORD}{rank}.json"
        if name not in names:
            raise UnusableCheckpoint(f"checkpoint {uri} lacks {name}")
        try:
            ranks.append(_SAVED_RANK.validate_json(read_bytes(f"{uri}/{name}")))
        except ValidationError as error:
            raise UnusableCheckpoint(
                f"{uri}/{name} is not a record of a checkpoint ({error.error_count()} errors)"
            ) from error
    return ranks


def _restore_random_states(uri: str) -> None:
    """Continue with the random states of this rank. Raises UnusableCheckpoint."""
    name = f"{uri}/rng-{dist.get_rank()}.safetensors"
    content = read_bytes(name)
    try:
        states = load(content)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
    except (KeyError, RuntimeError, SafetensorError, TypeError) as error:
        raise UnusableCheckpoint(f"{name} has no random states: {error}") from error


def _progress(ranks: list[Progress]) -> Progress:
    """Return this rank's progress, or that of rank 0 with the token counts of all ranks if their
    number has changed."""
    if len(ranks) == dist.get_world_size():
        return ranks[dist.get_rank()]
    return replace(
        ranks[0],
        tokens=sum(rank.tokens for rank in ranks),
        padded=sum(rank.padded for rank in ranks),
    )


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
