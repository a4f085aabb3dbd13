"""Place the weights of a model on a worker's device: all of them, or its part of each at ZeRO stage
3."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from tailorbird.config.training import PROCESS_GROUP_TIMEOUT_S, TrainingConfig
from tailorbird.models.lora import merge_layer, unmerged_layers
from tailorbird.models.pretrained import default_device, share_weights
from training.engine.deepspeed_engine import deepspeed_config
from training.engine.deepspeed_private import parameter_partitioner

Model = TypeVar("Model", bound=nn.Module)


def place_weights(model: Model, config: TrainingConfig, *, autocast: bool) -> Model:
    """Copy each parameter to this process's device in its training dtype, and keep only this rank's
    part at stage 3.

    The parameters may share memory with another model, which is not changed. They are copied and
    partitioned one after another, so no rank holds more than its part and one whole parameter. At
    stage 3, every rank must call it.
    """
    device = default_device()
    rounded = _rounded_weights(model) if autocast else set()
    if config.zero_stage == 3:
        partition = parameter_partitioner(
            deepspeed_config(config, num_workers=dist.get_world_size(), autocast=autocast),
            timeout_s=PROCESS_GROUP_TIMEOUT_S,
        )
    for parameter in model.parameters():
        in_bf16 = id(parameter) in rounded or config.parameter_dtype == "bf16"
        dtype = torch.bfloat16 if in_bf16 else torch.float32
        # A GPU casts faster than one core, and the weights that are copied to it are smaller.
        parameter.data = parameter.data.to(device).to(dtype, copy=True)
        if config.zero_stage == 3:
            partition(parameter)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model


def _rounded_weights(model: nn.Module) -> set[int]:
    """Return the ids of frozen weights that are stored in bf16 and that autocast would round to
    bf16 in each step.

    A weight that an embedding shares is not among them, because the output of an embedding is not
    rounded.
    """
    rounded: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            shared.update(map(id, module.parameters(recurse=False)))
        elif not module.weight.requires_grad and module.weight.dtype == torch.bfloat16:
            rounded.add(id(module.weight))
    return rounded - shared


@contextmanager
def fp32_weights(model: nn.Module) -> Iterator[None]:
    """Compute in fp32 if only the weights that `place_weights` left in bf16 are bf16; they are cast
    while in use."""

    def cast(module: nn.Module, *_: object) -> None:
        module.weight.data = module.weight.data.float()

    def restore(module: nn.Module, *_: object) -> None:
        # Exact, because the values are those of bf16 numbers.
        module.weight.data = module.weight.data.bfloat16()

    handles = []
    dtypes = {parameter.dtype for parameter in model.parameters()}
    for module in model.modules():
        is_rounded = isinstance(module, nn.Linear) and module.weight.dtype == torch.bfloat16
        if is_rounded and torch.float32 in dtypes:
            handles.append(module.register_forward_pre_hook(cast))
            handles.append(module.register_forward_hook(restore))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layerwise_copy(
    model: nn.Module, *, dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> Any:
    """Return a copy of a model with parameters in `dtype` on a device, which holds one repeated
    layer at a time.

    The weights of the other layers stay where they are, for example in a mapped file. The adapter
    of a PEFT model is merged in fp32 before its layer computes, with the result of `merge_layers`.
    """
    copied = share_weights(model)
    layers: list[nn.Module] = []
    for module in copied.modules():
        if isinstance(module, nn.ModuleList):
            layers += module
    repeated: set[int] = set()
    inside: set[int] = set()
    for layer in layers:
        repeated.update(map(id, layer.parameters()))
        inside.update(map(id, layer.modules()))

    for adapted in unmerged_layers(copied):
        if id(adapted) not in inside:
            merge_layer(adapted, dtype=dtype, device=device)
    for parameter in copied.parameters():
        if id(parameter) not in repeated:
            parameter.data = parameter.data.to(device, dtype)
    for buffer in copied.buffers():
        buffer.data = buffer.data.to(device)
    for layer in layers:
        _cast_while_computing(layer, dtype=dtype, device=device)
    return copied


def _cast_while_computing(layer: nn.Module, *, dtype: torch.dtype, device: Any) -> None:
    stored: list[torch.Tensor] = []
    merged: list[Any] = []

    def cast(*_: object) -> None:
        stored.extend(parameter.data for parameter in layer.parameters())
        merged.extend(unmerged_layers(layer))
        for adapted in merged:
            merge_layer(adapted, dtype=dtype, device=device)
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(device, dtype)

    def restore(*_: object) -> None:
        for parameter, data in zip(layer.parameters(), stored, strict=True):
            parameter.data = data
        for adapted in merged:
            adapted.merged_adapters.clear()
        stored.clear()
        merged.clear()

    layer.register_forward_pre_hook(cast)
    layer.register_forward_hook(restore)
