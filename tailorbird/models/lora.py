"""LoRA adapters: apply, check and merge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from tailorbird.models.errors import ModelError, first_line

LORA_TARGETS = "all-linear"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def add_adapter(encoder: nn.Module, *, r: int, alpha: int, dropout: float) -> nn.Module:
    """Add a new LoRA adapter to every linear layer and freeze everything else.

    The adapter's output is multiplied by `alpha / r`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
    )
    adapted: nn.Module = get_peft_model(encoder, config)
    return adapted


def load_adapter(model: nn.Module, folder: Path) -> Any:
    """Return a PEFT model with a stored adapter in fp32 on top of a model. Raises ModelError."""
    from peft import PeftModel

    require_adapter(folder)
    adapted = PeftModel.from_pretrained(model, folder)
    require_whole_adapter(adapted, folder)
    return adapted


def merge_adapter(adapter: Path, *, base: Path, folder: Path) -> None:
    """Write the causal language model in `base` with a LoRA adapter merged to a folder.

    The weights have the stored dtype of the base model. The tokenizer is that of the adapter, if it
    has one. Raises ModelError for another method than LoRA, and for an adapter of another model.
    """
    from transformers import AutoTokenizer

    from tailorbird.models.pretrained import load_causal

    method = json.loads((adapter / ADAPTER_CONFIG).read_bytes()).get("peft_type")
    if method != "LORA":
        raise ModelError(
            f"{adapter} is an adapter of the method {method}; merge it into its base model, and "
            "name the whole model"
        )
    lm: Any = load_causal(base, dtype=None)
    dtype = lm.dtype
    try:
        adapted = load_adapter(lm, adapter)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"the adapter {adapter} does not fit the model {base}: {first_line(error)}; name the "
            "model that it was tuned on"
        ) from None
    merged: Any = merge_layers(adapted, dtype=dtype, device="cpu")
    merged.save_pretrained(folder)
    has_tokenizer = (adapter / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(
        adapter if has_tokenizer else base, local_files_only=True, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)


def merge_layers(adapted: Any, *, dtype: torch.dtype, device: Any) -> nn.Module:
    """Merge the adapter of a PEFT model layer by layer in fp32, and return the model without it, in
    `dtype`.

    The result is that of PEFT on a model in fp32, cast to `dtype` afterwards, but only one layer at
    a time is in fp32. Weights are replaced, not changed in place, so other models may share the
    memory of the base model, and it can be mapped from a file.
    """
    for layer in unmerged_layers(adapted):
        merge_layer(layer, dtype=dtype, device=device)
    merged: nn.Module = adapted.unload()
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(device, dtype)
    return merged


def unmerged_layers(module: nn.Module) -> Iterator[Any]:
    """Yield the layers of PEFT whose adapter is not merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer) and not layer.merged:
            yield layer


def merge_layer(layer: Any, *, dtype: torch.dtype, device: Any) -> None:
    """Merge the adapter of a layer of PEFT in fp32, and cast the merged weight. The weight is
    replaced."""
    weight = layer.get_base_layer().weight
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(device).to(torch.float32, copy=parameter is weight)
    layer.merge()
    weight.data = weight.data.to(dtype)


def require_adapter(folder: Path) -> None:
    """Raise ModelError if an adapter has no safetensors weights, because PEFT would load a pickle
    instead."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{folder} contains no {ADAPTER_WEIGHTS}; weights are read from safetensors files only"
        )


def require_whole_adapter(adapted: Any, folder: Path) -> None:
    """Raise ModelError if the files lack a weight of the adapter, which PEFT would leave at 0, or
    have one more, which PEFT would ignore."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted)
    stored = set(load_file(folder / ADAPTER_WEIGHTS))
    for fault, names in (("lacks", set(expected) - stored), ("adds", stored - set(expected))):
        if names:
            raise ModelError(
                f"the adapter in {folder} {fault} {len(names)} weights, for example "
                f"{sorted(names)[0]}"
            )
