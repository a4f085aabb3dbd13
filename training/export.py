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
from training.engine.deepspeed_private import forward_dtype, fp32_values, gathered, num_values
from training.engine.memory_estimate import FP32
from training.engine.node_disk import require_room
from training.engine.placement import fp32_weights, layerwise_copy
from training.task import TaskRuntime

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest difference of a logit, relative to the largest logit if that exceeds 1, by the lowest precision of a
parameter in the trained model's forward pass.

- fp32: merging an adapter rounds; one wrong weight causes a thousand times this difference.
- bf16: rounding to nearest has a relative error of at most u = 2^-9, and of u / sqrt(3) on average. A layer adds two
  terms to its residual stream, each with rounded weights and activations. Independent errors of L layers add up to
  2 u sqrt(L / 3) of the hidden state: 1.3 % for 32 layers, 2 % for 80. The largest of many errors is in the same
  proportion to the largest of as many logits. A wrong weight can cause less, so the weights are also compared exactly.
"""


class UnusableWeights(ValueError):
    """Exported weights are empty, not finite, or differ from the trained model when they are loaded again."""


def full_state(engine: Any, config: TrainingConfig) -> dict[str, torch.Tensor]:
    """Return the full trained parameters in fp32 on rank 0. Every rank must call it.

    They are read one after another, so that a GPU holds only one of them in addition to its part of the model.
    """
    parameters = _exported(engine, config)
    state: dict[str, torch.Tensor] = {}
    for name, value in zip(parameters, fp32_values(engine, parameters.values()), strict=True):
        if dist.get_rank() == 0:
            state[name] = value.to("cpu", copy=True)
    return state


def _exported(engine: Any, config: TrainingConfig) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are exported, by name: all of them, or those of the adapter and the head."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad or config.method == "full"}


def export_weights(engine: Any, config: TrainingConfig, *, runtime: TaskRuntime, folder: Path) -> None:
    """Write the trained weights as the task's artifact on rank 0. Every rank must call it.

    To check the files, load them on top of the base model, whose memory is shared, and merge an adapter one layer at a
    time, so that rank 0 needs no second model. The exported weights must be equal to those that the engine computes
    with, if both are rounded to its precision, and the logits must be equal within `TOLERANCE`. Raises UnusableWeights
    on rank 0 if they are not, a weight is not finite, or an adapter is empty. Raises DiskFull on every rank, before
    anything is written, if the disk of rank 0 does not have enough room.
    """
    num_bytes = sum(FP32 * num_values(parameter) for parameter in _exported(engine, config).values())
    require_room(num_bytes if dist.get_rank() == 0 else 0, what="the export")
    state = full_state(engine, config)
    different = _differing_from_engine(state, engine=engine, config=config)
    with fp32_weights(engine.module):
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
        loaded = runtime.load(folder, config=config)
        different += _differing_from_files(state, loaded=loaded)
    except ValueError as error:  # includes ModelError
        raise UnusableWeights(str(error)) from None
    if different:
        raise UnusableWeights(f"the exported weights differ from the trained model in {', '.join(different[:3])}")
    state.clear()
    dtypes = {forward_dtype(parameter) for parameter in engine.module.parameters()}
    precision = torch.bfloat16 if torch.bfloat16 in dtypes else torch.float32
    dtype = torch.bfloat16 if config.parameter_dtype == "bf16" else torch.float32
    loaded = layerwise_copy(loaded, dtype=dtype, device=engine.device)
    difference = float((_logits(loaded, runtime, device=engine.device) - trained).abs().max())
    if not difference < TOLERANCE[precision] * max(1.0, float(trained.abs().max())):
        raise UnusableWeights(
            f"the exported weights give other predictions than the trained model (a logit differs by {difference:.3g})"
        )


def _differing_from_engine(state: dict[str, torch.Tensor], *, engine: Any, config: TrainingConfig) -> list[str]:
    """Return the names of the weights on rank 0 with other values than the engine's forward pass, if both are rounded.

    Every rank must call it.
    """
    names = []
    for name, parameter in _exported(engine, config).items():
        with gathered(parameter):
            dtype = forward_dtype(parameter)
            if name in state and not _equal(state[name].to(dtype), parameter.detach().to("cpu", dtype=dtype)):
                names.append(name)
    return names


def _differing_from_files(state: dict[str, torch.Tensor], *, loaded: torch.nn.Module) -> list[str]:
    """Return the names of the weights with other values than in the model that was loaded from the files."""
    stored = dict(loaded.named_parameters())
    return [name for name, value in state.items() if name not in stored or not _equal(stored[name].detach(), value)]


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return True if two tensors have the same shape and values; NaN is equal to NaN."""
    return left.shape == right.shape and torch.allclose(left, right, rtol=0, atol=0, equal_nan=True)


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
