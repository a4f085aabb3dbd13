"""Load the part of a language model that a rank holds, if the ranks of a process group hold it
together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tailorbird.models.errors import ModelError
from tailorbird.models.lora import merge_layer, unmerged_layers
from tailorbird.models.pretrained import load_causal_part
from tailorbird.models.tensor_parallel.plan import division_fault, rank_divisor


def load_divided(
    base: Path, *, changed: nn.Module | None, dtype: torch.dtype, num_ranks: int
) -> Any:
    """Load this rank's part of a language model on its device, in `dtype`. Every rank must call it.

    `changed` is the whole model with other weights or with a PEFT adapter, mapped from its files.
    Only one whole weight of it at a time is on the device. Each part has the values that it has in
    one process. Raises ModelError if the model cannot be divided.
    """
    lm = load_causal_part(base, dtype=dtype, num_ranks=num_ranks)
    fault = division_fault(rank_divisor(lm), num_ranks=num_ranks)
    if fault is not None:
        raise ModelError(fault)
    if changed is not None:
        for name, weight in _changed_weights(changed, dtype=dtype, device=lm.device):
            _set_part(lm.get_parameter(name), weight)
    return lm


def _changed_weights(
    model: Any, *, dtype: torch.dtype, device: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of all weights or, with a PEFT adapter, of those that it changes,
    after merging."""
    if not hasattr(model, "get_base_model"):
        for name, weight in model.named_parameters(remove_duplicate=False):
            yield name, weight.data.to(device, dtype)
        return
    names = {module: name for name, module in model.get_base_model().named_modules()}
    for layer in unmerged_layers(model):
        merge_layer(layer, dtype=dtype, device=device)
        weight = layer.get_base_layer().weight
        yield f"{names[layer]}.weight", weight.data
        weight.data = weight.new_empty(0)


@torch.no_grad()
def _set_part(parameter: Tensor, whole: Tensor) -> None:
    """Set a parameter to this rank's part of a weight."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(whole)
        return
    part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.to_local().copy_(part.to_local())
