"""Place a language model on the GPUs of this process."""

from typing import Any

import torch
from torch import nn

from tailorbird.models.causal_lm import ChatModel

MAX_SHARE = 0.8
"""Share of a GPU's memory that the weights of a model may take. The rest is for activations and the
key-value cache."""


def move_to_device(model: nn.Module, device: str) -> None:
    """Move a model to a device.

    On `cuda`, the layers of a language model that takes more than `MAX_SHARE` of one GPU are
    divided among all GPUs of this process, as with `device_map="auto"` of transformers.
    """
    if isinstance(model, ChatModel) and device == "cuda" and _needs_several_gpus(model):
        _divide(model.lm)
    else:
        model.to(device)


def move_to_host(model: nn.Module) -> None:
    """Move a model to the host's memory, also one that is divided among GPUs."""
    if isinstance(model, ChatModel) and is_divided(model.lm):
        from accelerate.hooks import remove_hook_from_submodules  # slow to import

        remove_hook_from_submodules(model.lm)
        del model.lm.hf_device_map
    model.to("cpu")


def is_divided(lm: Any) -> bool:
    """Return True if the layers of a transformers model are on several devices."""
    return len(set(getattr(lm, "hf_device_map", {}).values())) > 1


def _divide(lm: Any) -> None:
    """Divide a model in the host's memory, whose adapter is merged.

    `from_pretrained(device_map="auto")` calls the same functions, but before a version's weights
    are loaded.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    blocks = lm._no_split_modules
    memory = get_balanced_memory(lm, no_split_module_classes=blocks)
    device_map = infer_auto_device_map(lm, max_memory=memory, no_split_module_classes=blocks)
    dispatch_model(lm, device_map)


def _needs_several_gpus(model: ChatModel) -> bool:
    if torch.cuda.device_count() == 1:
        return False
    _, num_gpu_bytes = torch.cuda.mem_get_info()
    return sum(weight.nbytes for weight in model.parameters()) > MAX_SHARE * num_gpu_bytes
