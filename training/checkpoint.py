"""Checkpoints between two steps: DeepSpeed's shards, and the progress and random states of each rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from tailorbird.config.training import TrainingConfig
from training.deepspeed_private import convert_to_universal, inner_optimizer
from training.errors import temporary_directory
from training.loop import build_engine
from training.reports import Progress
from training.safe_checkpoint_loading import UnusableCheckpoint, find_unsafe_file, tensors_only
from training.task import TaskRuntime, means_over_ranks

TAG = "step"
_PROGRESS = TypeAdapter(Progress)


def save(engine: Any, config: TrainingConfig, *, folder: Path, progress: Progress) -> None:
    """Write this rank's part of a checkpoint. Every rank must call it, each with its own folder."""
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=config.method == "lora")
    (folder / f"progress-{dist.get_rank()}.json").write_bytes(_PROGRESS.dump_json(progress))
    save_file(_random_states(), folder / f"rng-{dist.get_rank()}.safetensors")


def resume(config: TrainingConfig, runtime: TaskRuntime, *, folder: Path, uri: str) -> tuple[Any, Progress]:
    """Return an engine in the state of a checkpoint, and this rank's progress; `folder` is this rank's copy of `uri`.

    If the number of ranks has changed, the shards are converted to DeepSpeed's universal checkpoint, and dropout masks
    differ from an uninterrupted training. No code from the files is run. Raises UnusableCheckpoint on every rank if a
    file is unsafe or invalid.
    """
    unsafe = find_unsafe_file(folder)
    if means_over_ranks(float(unsafe is not None))[0]:
        raise UnusableCheckpoint(
            f"checkpoint {uri} was changed after it was written: {unsafe or 'see the error of another worker'}; check "
            "the write permissions of this path"
        )
    with tensors_only():
        return _resumed(config, runtime, folder=folder, uri=uri)


def _resumed(config: TrainingConfig, runtime: TaskRuntime, *, folder: Path, uri: str) -> tuple[Any, Progress]:
    num_ranks = len(list(folder.glob("progress-*.json")))
    if num_ranks == dist.get_world_size() or config.zero_stage == 0:  # stage 0 has no shards
        engine = build_engine(config, runtime)
        _restore(engine, config, folder=folder, uri=uri)
    else:
        engine = build_engine(_universal(config), runtime)
        with temporary_directory() as converted:
            convert_to_universal(folder / TAG, converted / TAG)
            _restore(engine, config, folder=converted, uri=uri)
    if num_ranks == dist.get_world_size():
        states = load_file(folder / f"rng-{dist.get_rank()}.safetensors")
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
    return engine, _progress(folder, num_ranks=num_ranks)


def _restore(engine: Any, config: TrainingConfig, *, folder: Path, uri: str) -> None:
    optimizer = inner_optimizer(engine)
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=config.method != "lora")
    if path is None:
        raise UnusableCheckpoint(f"checkpoint {uri} contains no state")
    # At stage 3, a universal checkpoint gives all groups the learning rate and weight decay of the first group, and all
    # parameters share one step tensor.
    for group, values, rate in zip(optimizer.param_groups, options, engine.lr_scheduler.get_last_lr(), strict=True):
        group.update(values | {"lr": rate})
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


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
