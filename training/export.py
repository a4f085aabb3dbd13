"""Export an engine's weights as fp32 safetensors, and average exported weights."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

from tailorbird.config.training import TrainingConfig
from tailorbird.storage import upload_folder
from tailorbird.storage.node_cache import local_copy
from training.engine.deepspeed_private import forward_dtype, fp32_values, gathered
from training.engine.placement import fp32_weights, layerwise_copy
from training.engine.tensor_file import save_tensors
from training.errors import staging_directory
from training.ranks import from_rank_0
from training.task import TaskRuntime

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest difference of a logit, relative to the largest logit if that exceeds 1, by the lowest
precision of a parameter in the trained model's forward pass.

- fp32: merging an adapter rounds; one wrong weight causes a thousand times this difference.
- bf16: rounding to nearest has a relative error of at most u = 2^-9, and of u / sqrt(3) on average.
  A layer adds two terms to its residual stream, each with rounded weights and activations.
  Independent errors of L layers add up to 2 u sqrt(L / 3) of the hidden state: 1.3 % for 32 layers,
  2 % for 80. The largest of many errors is in the same proportion to the largest of as many logits.
  A wrong weight can cause less, so the weights are also compared exactly.
"""


class UnusableWeights(ValueError):
    """Exported weights are empty, not finite, or differ from the trained model when they are loaded
    again."""


def exported_values(engine: Any, config: TrainingConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the fp32 value of each exported weight, in host memory on rank 0. Every
    rank must iterate.

    They are read one after another, so that a GPU and the host hold only one of them in addition to
    their parts of the model.
    """
    parameters = _exported(engine, config)
    for name, value in zip(parameters, fp32_values(engine, parameters.values()), strict=True):
        yield name, value.to("cpu", copy=True) if dist.get_rank() == 0 else value


def _exported(engine: Any, config: TrainingConfig) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are exported, by name: all of them, or those of the adapter and
    the head."""
    parameters = dict(engine.module.named_parameters())
    if config.method == "full":
        return parameters
    return {name: each for name, each in parameters.items() if each.requires_grad}


def export_weights(
    engine: Any, config: TrainingConfig, *, runtime: TaskRuntime, folder: Path
) -> None:
    """Write the trained weights as the task's artifact on rank 0. Every rank must call it.

    To check the files, load them on top of the base model, whose memory is shared, and merge an
    adapter one layer at a time, so that rank 0 needs no second model. The exported weights must be
    equal to those that the engine computes with, if both are rounded to its precision, and the
    logits must be equal within `TOLERANCE`. Raises UnusableWeights on rank 0 if they are not, and
    on every rank if a weight is not finite, or an adapter is empty.
    """
    loaded = _write_and_load(engine, config, runtime=runtime, folder=folder)
    stored = {}
    if loaded is not None:
        stored = {name: weight.detach() for name, weight in loaded.named_parameters()}
    different = _differing_from_engine(engine, config, stored=stored)
    with fp32_weights(engine.module):
        trained = _logits(engine.module, runtime, device=engine.device)
    if loaded is None:
        return
    if different:
        raise UnusableWeights(
            f"the exported weights differ from the trained model in {', '.join(different[:3])}"
        )
    tolerance = TOLERANCE[torch.float32]
    if torch.bfloat16 in {forward_dtype(parameter) for parameter in engine.module.parameters()}:
        tolerance = TOLERANCE[torch.bfloat16]
    dtype = torch.float32
    if config.parameter_dtype == "bf16":
        dtype = torch.bfloat16
    loaded = layerwise_copy(loaded, dtype=dtype, device=engine.device)
    difference = float((_logits(loaded, runtime, device=engine.device) - trained).abs().max())
    if not difference < tolerance * max(1.0, float(trained.abs().max())):
        raise UnusableWeights(
            "the exported weights give other predictions than the trained model (a logit differs "
            f"by {difference:.3g})"
        )


def upload_weights(engine: Any, config: TrainingConfig, *, runtime: TaskRuntime, uri: str) -> None:
    """Export the trained weights to the folder `uri`. Raises UnusableWeights on every rank.

    Every rank must call it.
    """
    refusal = ""
    with staging_directory() as folder:
        try:
            export_weights(engine, config, runtime=runtime, folder=folder)
        except UnusableWeights as error:  # maybe on rank 0 only
            refusal = str(error)
        if dist.get_rank() == 0 and not refusal:
            upload_folder(folder, uri)
    shutil.rmtree(folder)
    refusal = from_rank_0(refusal)
    if refusal:
        raise UnusableWeights(refusal)


def _write_and_load(
    engine: Any, config: TrainingConfig, *, runtime: TaskRuntime, folder: Path
) -> torch.nn.Module | None:
    """Write the weights on rank 0, and return the model that is loaded from the files; return None
    on other ranks.

    Every rank must call it. Raises UnusableWeights on every rank.
    """
    values = exported_values(engine, config)
    loaded = None
    refusal = ""
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            runtime.write(_finite(values), model=engine.module, config=config, folder=folder)
            loaded = runtime.load(folder, config=config)
        except ValueError as error:  # includes ModelError
            refusal = str(error)
    for _ in values:  # other ranks, and rank 0 after an error, take part in reading each value
        pass
    refusal = from_rank_0(refusal)
    if refusal:
        raise UnusableWeights(refusal)
    return loaded


def _finite(values: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the values. Raises UnusableWeights for one that is empty or not finite."""
    for name, value in values:
        # `aminmax` allocates nothing.
        if value.numel() == 0 or not all(map(torch.isfinite, value.aminmax())):
            raise UnusableWeights(
                f"weights are empty or not finite in {name}; lower training.learning_rate"
            )
        yield name, value


def _differing_from_engine(
    engine: Any, config: TrainingConfig, *, stored: dict[str, torch.Tensor]
) -> list[str]:
    """Return the names of the weights that differ between the files and the engine. Every rank must
    call it.

    They must be equal to the engine's fp32 values, and to the values in its forward pass if both
    are rounded. `stored` has the weights from the files on rank 0, and is empty on other ranks.
    """
    names = []
    for name, value in exported_values(engine, config):
        if stored and (name not in stored or not _equal(stored[name], value)):
            names.append(name)
    for name, parameter in _exported(engine, config).items():
        with gathered(parameter):
            dtype = forward_dtype(parameter)
            if name in stored and not _equal(
                stored[name].to(dtype), parameter.detach().to("cpu", dtype=dtype)
            ):
                names.append(name)
    return names


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return True if two tensors have the same shape and values; NaN is equal to NaN."""
    if torch.equal(left, right):  # without the temporary tensors of `allclose`
        return True
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
    """Write to `uri` the mean of the weights in `uris`, which come from one base model trained with
    different seeds.

    The averaged model costs no more at inference than one model, and is often better (Wortsman et
    al., Model soups, ICML 2022). It works only for full weights: a LoRA update is a product of two
    matrices, and the product of mean matrices is not the mean product.
    """
    folders = [local_copy(source) for source in uris]
    names = {path.name for path in folders[0].glob("*.safetensors")}
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as temporary:
        for name in names:
            _average_file([folder / name for folder in folders], Path(temporary) / name)
        upload_folder(Path(temporary), uri)


def _average_file(files: Sequence[Path], mean: Path) -> None:
    """Write the mean of the files' tensors in fp32, one tensor after another."""
    opened: list[Any] = [safe_open(file, framework="pt") for file in files]
    shapes = {}
    for key in opened[0].keys():  # noqa: SIM118  not a mapping
        shapes[key] = opened[0].get_slice(key).get_shape()

    def mean_of(key: str) -> torch.Tensor:
        total = sum(file.get_tensor(key).double() for file in opened)
        return torch.as_tensor(total / len(opened)).float()

    save_tensors(((key, mean_of(key)) for key in shapes), mean, shapes=shapes)
