"""LoRA adapters: apply, check and merge."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tailorbird.models.errors import ModelError

LORA_TARGETS = "all-linear"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapter(encoder: nn.Module, *, r: int, alpha: int, dropout: float, use_rslora: bool = False) -> nn.Module:
    """Add a new LoRA adapter to every linear layer and freeze everything else.

    The adapter's output is multiplied by `alpha / r`, or by `alpha / sqrt(r)` with `use_rslora`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, use_rslora=use_rslora)
    adapted: nn.Module = get_peft_model(encoder, config)
    return adapted


def merge_adapter(encoder: nn.Module, folder: Path) -> nn.Module:
    """Merge an adapter into the weights of the encoder."""
    from peft import PeftModel

    require_adapter(folder)
    adapted = PeftModel.from_pretrained(encoder, folder)
    require_whole_adapter(adapted, folder)
    merged: nn.Module = adapted.merge_and_unload()
    return merged


def merge_layers(adapted: Any, *, dtype: torch.dtype, device: Any) -> nn.Module:
    """Merge the adapter of a PEFT model layer by layer in fp32, and return the model without it, in `dtype`.

    The result is that of `merge_adapter` on a model in fp32, cast to `dtype` afterwards, but only one layer at a time
    is in fp32. Weights are replaced, not changed in place, so other models may share the memory of the base model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            weight = layer.get_base_layer().weight
            weight.data = weight.data.to(device, torch.float32, copy=True)
            layer.merge()
            weight.data = weight.data.to(dtype)
    merged: nn.Module = adapted.unload()
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(device, dtype)
    return merged


def stored_adapter(folder: Path) -> dict[str, Tensor]:
    """Return the weights in an adapter's file, by their parameter's name in a PEFT model."""
    weights = load_file(folder / ADAPTER_WEIGHTS)
    return {re.sub(r"(\.lora_[AB])\.", r"\1.default.", name): value for name, value in weights.items()}


def require_adapter(folder: Path) -> None:
    """Raise ModelError if an adapter has no safetensors weights, because PEFT would load a pickle instead."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} contains no {ADAPTER_WEIGHTS}; weights are read from safetensors files only")


def require_whole_adapter(adapted: Any, folder: Path, *, name: str = "default") -> None:
    """Raise ModelError if the files lack a weight of the adapter, because PEFT would leave it at 0."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, adapter_name=name)
    missing = set(expected) - set(load_file(folder / ADAPTER_WEIGHTS))
    if missing:
        raise ModelError(f"the adapter in {folder} lacks {len(missing)} weights, for example {sorted(missing)[0]}")
