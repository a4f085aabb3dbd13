"""What a training leaves at an epoch's end, and goes on from: DeepSpeed's shards and each rank's random state."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from recipes.schema import TrainingSection

TAG = "epoch"


def save(engine: Any, section: TrainingSection, *, folder: Path, report: dict[str, Any]) -> None:
    """Writes this rank's part, and what the epoch reported; every rank must call it, each with a folder of its own."""
    engine.save_checkpoint(
        str(folder), tag=TAG, client_state={"report": report}, exclude_frozen_parameters=section.method == "lora"
    )
    save_file({"state": torch.get_rng_state()}, folder / f"rng-{dist.get_rank()}.safetensors")


def load(engine: Any, section: TrainingSection, *, folder: Path) -> dict[str, Any]:
    """Restores this rank; returns the report of the epoch that was finished. Raises ValueError if it is unusable."""
    path, client_state = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=section.method != "lora")
    if path is None:
        raise ValueError(f"checkpoint {folder} holds no state; delete the run's `train` folder and run again")
    torch.set_rng_state(load_file(folder / f"rng-{dist.get_rank()}.safetensors")["state"])
    return dict(client_state["report"])
