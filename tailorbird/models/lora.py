"""LoRA adapters: apply, check and merge."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from tailorbird.models.errors import ModelError

LORA_TARGETS = "all-linear"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapter(encoder: nn.Module, *, r: int, alpha: int, dropout: float) -> nn.Module:
    """The encoder with a fresh LoRA adapter on every linear layer; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS)
    adapted: nn.Module = get_peft_model(encoder, config)
    return adapted


def merge_adapter(encoder: nn.Module, folder: Path) -> nn.Module:
    """The encoder with an adapter's update added to its weights."""
    from peft import PeftModel

    require_adapter(folder)
    adapted = PeftModel.from_pretrained(encoder, folder)
    require_whole_adapter(adapted, folder)
    merged: nn.Module = adapted.merge_and_unload()
    return merged


def require_adapter(folder: Path) -> None:
    """Raises ModelError where an adapter's weights are not there as safetensors: PEFT would look for a pickle then."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {ADAPTER_WEIGHTS}, and weights in no other format are read")


def require_whole_adapter(adapted: Any, folder: Path, *, name: str = "default") -> None:
    """Raises ModelError where the files lack a weight of the adapter: PEFT itself leaves it at 0."""
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(adapted, adapter_name=name)
    missing = set(wanted) - set(load_file(folder / ADAPTER_WEIGHTS))
    if missing:
        raise ModelError(f"the adapter in {folder} lacks {len(missing)} weights, {sorted(missing)[0]} among them")
