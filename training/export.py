"""From an engine's shards to a version's weight files, in fp32 safetensors."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tailorbird.config.training import TrainingConfig
from training.deepspeed_engine import import_deepspeed
from training.task import TaskRuntime

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit where that is over 1: merging an adapter rounds, and
one wrong weight makes a thousand times as much."""


class UnusableWeights(ValueError):
    """A training that left weights that are empty, not finite, or not those of the trained model when loaded again."""


def full_state(engine: Any, config: TrainingConfig, *, everywhere: bool = False) -> dict[str, torch.Tensor]:
    """The trained parameters, whole, on rank 0; elsewhere too if asked, else empty. Every rank must call it."""
    deepspeed = import_deepspeed()
    module = engine.module
    wanted = [(name, p) for name, p in module.named_parameters() if p.requires_grad or config.method == "full"]
    state: dict[str, torch.Tensor] = {}
    with deepspeed.zero.GatheredParameters([p for _, p in wanted], enabled=config.zero_stage == 3):
        if everywhere or dist.get_rank() == 0:
            state = {name: p.detach().float().cpu().clone() for name, p in wanted}
    return state


def export_weights(engine: Any, config: TrainingConfig, *, material: TaskRuntime, folder: Path) -> None:
    """Writes the trained weights as the task's artifact on rank 0; every rank must call it.

    The files are loaded again over the pristine base model, and must answer as the engine's model does. Raises
    UnusableWeights, on rank 0, if they do not, if a weight is not finite or an adapter is empty.
    """
    state = full_state(engine, config)
    trained = _logits(engine.module, material, device=engine.device)
    if dist.get_rank() != 0:
        return
    broken = [name for name, value in state.items() if not torch.isfinite(value).all() or value.numel() == 0]
    if broken:
        raise UnusableWeights(f"training left no usable weights in {', '.join(broken[:3])}; lower the learning rate")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        material.write(state, model=engine.module, config=config, folder=folder)
        loaded = material.load(folder, config=config).to(engine.device)
    except ValueError as error:  # ModelError among them
        raise UnusableWeights(str(error)) from None
    difference = float((_logits(loaded, material, device=engine.device) - trained).abs().max())
    if not difference < TOLERANCE * max(1.0, float(trained.abs().max())):
        raise UnusableWeights(
            f"the exported weights, loaded again, answer otherwise than the trained model (a logit by {difference:.3g})"
        )


def _logits(model: Any, material: TaskRuntime, *, device: Any) -> torch.Tensor:
    """Without dropout; at stage 3 the parameters are gathered, so every rank must call it."""
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = material.logits(model, device=device)
    model.train(training)
    return logits
