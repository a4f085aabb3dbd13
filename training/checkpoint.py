"""What a training leaves between two steps, and goes on from: DeepSpeed's shards, each rank's progress and chance."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from recipes.schema import TrainingSection
from training.loop import EpochReport, Progress

TAG = "step"


def save(
    engine: Any, section: TrainingSection, *, folder: Path, progress: Progress, report: EpochReport | None
) -> None:
    """Writes this rank's part, and what the last epoch reported; every rank must call it, each with its own folder."""
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=section.method == "lora")
    state = {"progress": asdict(progress), "report": asdict(report) if report else None}
    (folder / f"progress-{dist.get_rank()}.json").write_text(json.dumps(state))
    save_file(_random_states(), folder / f"rng-{dist.get_rank()}.safetensors")


def load(engine: Any, section: TrainingSection, *, folder: Path) -> tuple[Progress, EpochReport | None]:
    """Restores this rank; returns how far it was and the last epoch's report. Raises ValueError if it is unusable."""
    path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=section.method != "lora")
    if path is None:
        raise ValueError(f"checkpoint {folder} holds no state; delete the run's `train` folder and run again")
    states = load_file(folder / f"rng-{dist.get_rank()}.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    state = json.loads((folder / f"progress-{dist.get_rank()}.json").read_text())
    return Progress(**state["progress"]), EpochReport(**state["report"]) if state["report"] else None


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states
