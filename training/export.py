"""Export an engine's weights as fp32 safetensors, and average exported weights."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from tailorbird.config.training import TrainingConfig
from tailorbird.registry.versions import INDEX_FILES
from tailorbird.storage import upload_folder
from tailorbird.storage.node_cache import local_copy
from training.deepspeed_private import import_deepspeed
from training.task import TaskRuntime

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit if that exceeds 1. Merging an adapter rounds; one wrong
weight causes a thousand times this difference."""


class UnusableWeights(ValueError):
    """Exported weights are empty, not finite, or differ from the trained model when they are loaded again."""


def full_state(engine: Any, config: TrainingConfig, *, everywhere: bool = False) -> dict[str, torch.Tensor]:
    """Return the full trained parameters on rank 0, or on every rank if `everywhere`. Every rank must call it."""
    deepspeed = import_deepspeed()
    module = engine.module
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad or config.method == "full"]
    state: dict[str, torch.Tensor] = {}
    with deepspeed.zero.GatheredParameters([p for _, p in parameters], enabled=config.zero_stage == 3):
        if everywhere or dist.get_rank() == 0:
            state = {name: p.detach().float().cpu().clone() for name, p in parameters}
    return state


def export_weights(engine: Any, config: TrainingConfig, *, runtime: TaskRuntime, folder: Path) -> None:
    """Write the trained weights as the task's artifact on rank 0. Every rank must call it.

    To check the files, load them into a copy of the base model and compare its logits with those of the trained model.
    Raises UnusableWeights on rank 0 if they differ, a weight is not finite, or an adapter is empty.
    """
    state = full_state(engine, config)
    trained = _logits(engine.module, runtime, device=engine.device)
    if dist.get_rank() != 0:
        return
    broken = [name for name, value in state.items() if not torch.isfinite(value).all() or value.numel() == 0]
    if broken:
        raise UnusableWeights(
            f"weights are empty or not finite in {', '.join(broken[:3])}; lower training.learning_rate"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        runtime.write(state, model=engine.module, config=config, folder=folder)
        loaded = runtime.load(folder, config=config).to(engine.device)
    except ValueError as error:  # includes ModelError
        raise UnusableWeights(str(error)) from None
    difference = float((_logits(loaded, runtime, device=engine.device) - trained).abs().max())
    if not difference < TOLERANCE * max(1.0, float(trained.abs().max())):
        raise UnusableWeights(
            f"the exported weights give other predictions than the trained model (a logit differs by {difference:.3g})"
        )


def _logits(model: Any, runtime: TaskRuntime, *, device: Any) -> torch.Tensor:
    """Return logits without dropout. Stage 3 gathers the parameters, so every rank must call it."""
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = runtime.logits(model, device=device)
    model.train(training)
    return logits


def average_weights(uris: Sequence[str], uri: str) -> None:
    """Write to `uri` the mean of the weights in `uris`, which come from one base model trained with different seeds.

    The averaged model costs no more at inference than one model, and is often better (Wortsman et al., Model soups,
    ICML 2022). It works only for full weights: a LoRA update is a product of two matrices, and the product of mean
    matrices is not the mean product. Raises ValueError if the files, or the weights in them, do not match.
    """
    folders = [local_copy(source) for source in uris]
    # The folder of a former candidate also contains the index of its retrieved examples.
    names = [sorted({path.name for path in folder.glob("*.safetensors")} - {*INDEX_FILES}) for folder in folders]
    if not names[0] or any(other != names[0] for other in names):
        raise ValueError(f"{', '.join(uris)} do not contain the same safetensors files and cannot be averaged")
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as temporary:
        for name in names[0]:
            _average_file([folder / name for folder in folders], Path(temporary) / name)
        upload_folder(Path(temporary), uri)


def _average_file(files: Sequence[Path], mean: Path) -> None:
    """Write the mean of the files' tensors. One tensor of each file is in memory at a time, in addition to the mean."""
    opened: list[Any] = [safe_open(file, framework="pt") for file in files]
    keys = set(opened[0].keys())
    if any(set(file.keys()) != keys for file in opened):
        raise ValueError(f"the weights in {', '.join(map(str, files))} have different names")
    tensors = {}
    for key in sorted(keys):
        values = [file.get_tensor(key) for file in opened]
        if any(value.shape != values[0].shape for value in values):
            raise ValueError(f"the weights {key!r} in {', '.join(map(str, files))} have different shapes")
        tensors[key] = (sum(value.double() for value in values) / len(values)).to(values[0].dtype)
    save_file(tensors, mean)
