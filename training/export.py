"""From an engine's shards to a version's weight files, in fp32 safetensors."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from data.encode import collate
from models.load import ModelError, load_weights
from recipes.schema import TrainingSection
from training.loop import Material

COMPARED_ROWS = 8
TOLERANCE = 1e-3
"""Largest difference of a logit: merging an adapter rounds, and one wrong weight makes a thousand times as much."""


class UnusableWeights(ValueError):
    """A training that left weights that are empty, not finite, or not those of the trained model when loaded again."""


def full_state(engine: Any, section: TrainingSection) -> dict[str, torch.Tensor]:
    """The trained parameters (and buffers), whole, on rank 0; empty elsewhere. Every rank must call it."""
    import deepspeed

    module = engine.module
    wanted = [(name, p) for name, p in module.named_parameters() if p.requires_grad or section.method == "full"]
    state: dict[str, torch.Tensor] = {}
    with deepspeed.zero.GatheredParameters([p for _, p in wanted], enabled=section.zero_stage == 3):
        if dist.get_rank() == 0:
            state = {name: p.detach().float().cpu().clone() for name, p in wanted}
    return state


def export_weights(engine: Any, section: TrainingSection, *, material: Material, folder: Path) -> None:
    """Writes `head.safetensors` and `encoder.safetensors` or `adapter/` on rank 0; every rank must call it.

    The files are loaded again over the pristine encoder, and must answer validation rows as the engine's model does.
    Raises UnusableWeights, on rank 0, if they do not, if a weight is not finite or an adapter is empty.
    """
    state = full_state(engine, section)
    trained = _logits(engine.module, material, device=engine.device)
    if dist.get_rank() != 0:
        return
    broken = [name for name, value in state.items() if not torch.isfinite(value).all() or value.numel() == 0]
    if broken:
        raise UnusableWeights(f"training left no usable weights in {', '.join(broken[:3])}; lower the learning rate")
    folder.mkdir(parents=True, exist_ok=True)
    head = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    save_file(head, folder / "head.safetensors")
    if section.method == "lora":
        _save_adapter(engine.module.encoder, encoder, folder / "adapter")
    else:
        save_file(encoder, folder / "encoder.safetensors")
    try:
        loaded = load_weights(folder, encoder=copy.deepcopy(material.encoder), kind=section.method).to(engine.device)
    except ModelError as error:
        raise UnusableWeights(str(error)) from None
    difference = float((_logits(loaded, material, device=engine.device) - trained).abs().max())
    if not difference < TOLERANCE:
        raise UnusableWeights(
            f"the exported weights, loaded again, answer otherwise than the trained model (a logit by {difference:.3g})"
        )


def _logits(model: Any, material: Material, *, device: Any) -> torch.Tensor:
    """In fp32, on a few validation rows; at stage 3 the parameters are gathered, so every rank must call it."""
    input_ids, attention_mask = collate(material.validation_tokens[:COMPARED_ROWS], pad_id=material.pad_id)
    training = model.training
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids.to(device), attention_mask.to(device))
    model.train(training)
    return logits


def _save_adapter(adapted: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    if not weights:
        raise UnusableWeights("the adapter is empty; nothing was trained")
    adapted.peft_config["default"].inference_mode = True
    adapted.save_pretrained(folder, state_dict=weights, safe_serialization=True)
