"""What a training leaves between two steps, and goes on from: DeepSpeed's shards, each rank's progress and chance."""

import argparse
import contextlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from tailorbird.config.training import TrainingConfig
from training.deepspeed_engine import import_deepspeed
from training.errors import temporary_directory
from training.loop import EpochReport, Progress, build_engine
from training.safe_checkpoint_loading import UnusableCheckpoint, find_unsafe_file, tensors_only
from training.task import TaskRuntime, means_over_ranks

TAG = "step"


def save(engine: Any, config: TrainingConfig, *, folder: Path, progress: Progress) -> None:
    """Writes this rank's part; every rank must call it, each with a folder of its own."""
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=config.method == "lora")
    (folder / f"progress-{dist.get_rank()}.json").write_text(json.dumps(asdict(progress)))
    save_file(_random_states(), folder / f"rng-{dist.get_rank()}.safetensors")


def resume(config: TrainingConfig, material: TaskRuntime, *, folder: Path, uri: str) -> tuple[Any, Progress]:
    """An engine as a checkpoint left it, and how far this rank was; `folder` is this rank's copy of `uri`.

    With another number of ranks than wrote it, its shards are put together and cut anew (DeepSpeed's universal
    checkpoint); dropout then draws otherwise. Raises UnusableCheckpoint, on every rank, where one of its files is not
    what a training writes: none of them gets to run code.
    """
    _require_ours(folder, uri=uri)
    with tensors_only():
        return _resumed(config, material, folder=folder, uri=uri)


def _require_ours(folder: Path, *, uri: str) -> None:
    fault = find_unsafe_file(folder)
    if means_over_ranks(float(fault is not None))[0]:
        raise UnusableCheckpoint(
            f"checkpoint {uri} is not as a training left it: {fault or 'another worker says so'}; find out who else "
            "may write there"
        )


def _resumed(config: TrainingConfig, material: TaskRuntime, *, folder: Path, uri: str) -> tuple[Any, Progress]:
    num_ranks = len(list(folder.glob("progress-*.json")))
    if num_ranks == dist.get_world_size() or config.zero_stage == 0:  # stage 0 has no shards
        engine = build_engine(config, material)
        _restore(engine, config, folder=folder, uri=uri)
    else:
        engine = build_engine(_universal(config), material)
        with temporary_directory() as joined:
            _join_shards(folder / TAG, joined / TAG)
            _restore(engine, config, folder=joined, uri=uri)
    if num_ranks == dist.get_world_size():
        states = load_file(folder / f"rng-{dist.get_rank()}.safetensors")
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
    return engine, _progress(folder, num_ranks=num_ranks)


def _restore(engine: Any, config: TrainingConfig, *, folder: Path, uri: str) -> None:
    optimizer = engine.optimizer.optimizer if config.zero_stage else engine.optimizer
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=config.method != "lora")
    if path is None:
        raise UnusableCheckpoint(f"checkpoint {uri} holds no state")
    # At stage 3 a universal checkpoint gives every group the first one's rate and decay, and all one count of steps.
    for group, values, rate in zip(optimizer.param_groups, own, engine.lr_scheduler.get_last_lr(), strict=True):
        group.update(values | {"lr": rate})
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


def _progress(folder: Path, *, num_ranks: int) -> Progress:
    """This rank's; among another number of ranks, with the tokens that all had counted."""
    states = [json.loads((folder / f"progress-{rank}.json").read_text()) for rank in range(num_ranks)]
    same = num_ranks == dist.get_world_size()
    state = states[dist.get_rank() if same else 0]
    if not same:
        state |= {name: sum(other[name] for other in states) for name in ("tokens", "padded")}
    last = EpochReport(**state["last"]) if state["last"] else None
    return Progress(**state | {"last": last})


def _universal(config: TrainingConfig) -> TrainingConfig:
    options = config.deepspeed.get("checkpoint", {}) | {"load_universal": True}
    return config.model_copy(update={"deepspeed": config.deepspeed | {"checkpoint": options}})


def _join_shards(shards: Path, joined: Path) -> None:
    """DeepSpeed's shards of any number of ranks as one universal checkpoint (Lian et al., 2024)."""
    import_deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    joined.mkdir(parents=True)
    arguments = argparse.Namespace(
        input_folder=str(shards),
        output_folder=str(joined),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        ds_to_universal.main(arguments)


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states
