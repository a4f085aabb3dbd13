"""Three steps, an export and a resume for ten configurations that cover all pairs of their settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.models import (
    BERT_SMALL,
    BERT_TINY,
    LLAMA_SMALL,
    LLAMA_TINY,
    process_group,
    saved_model,
    training_task,
)
from tailorbird.config.training import TrainingConfig
from training import checkpoint
from training.engine.deepspeed_private import destroy_engine
from training.export import export_weights
from training.loop import Callbacks, build_engine, train
from training.reports import Progress
from training.task import TaskRuntime

NUM_STEPS, CHECKPOINT_AT, BATCH_SIZE, NUM_TOKENS = 3, 2, 4, 64


@dataclass(frozen=True)
class Combination:
    """Settings of a training."""

    zero_stage: Literal[0, 1, 2, 3]
    method: Literal["full", "lora"]
    task: Literal["chat", "classification"]
    gradient_checkpointing: bool
    offload: Literal["none", "optimizer", "parameters"]

    @property
    def name(self) -> str:
        recomputes = ", checkpointing" if self.gradient_checkpointing else ""
        return f"{self.task}, {self.method}, stage {self.zero_stage}, offload {self.offload}{recomputes}"


COMBINATIONS = (
    Combination(0, "full", "chat", False, "none"),
    Combination(0, "lora", "classification", True, "none"),
    Combination(1, "full", "chat", False, "optimizer"),
    Combination(1, "lora", "classification", True, "none"),
    Combination(2, "full", "classification", False, "none"),
    Combination(2, "lora", "chat", True, "optimizer"),
    Combination(3, "full", "chat", True, "none"),
    Combination(3, "full", "chat", True, "parameters"),
    Combination(3, "lora", "classification", False, "optimizer"),
    Combination(3, "lora", "classification", False, "parameters"),
)
"""Each pair of values of two settings occurs, except for pairs that a recipe cannot have (offload below its stage)."""


def check_combinations(folder: Path, reduced: bool) -> dict[str, float]:
    """Train, export and resume each combination.

    Return the number of combinations, and the largest relative difference of the loss of a resumed epoch. Raises the
    first error, with the name of the combination.
    """
    sizes: Mapping[str, Any] = {
        "chat": LLAMA_TINY if reduced else LLAMA_SMALL,
        "classification": BERT_TINY if reduced else BERT_SMALL,
    }
    bases = {task: saved_model(folder, task, size) for task, size in sizes.items()}
    differences = []
    with process_group():
        for number, combination in enumerate(COMBINATIONS):
            task = training_task(
                bases[combination.task], combination.task, num_rows=NUM_STEPS * BATCH_SIZE, num_tokens=NUM_TOKENS
            )
            own = folder / str(number)
            own.mkdir()
            try:
                differences.append(
                    _difference_after_resume(combination, task.load_runtime(), folder=own, gpu=not reduced)
                )
            except Exception as error:
                raise RuntimeError(f"{combination.name}: {type(error).__name__}: {error}") from error
            print(f"{combination.name}: loss differs by {differences[-1]:.2g} after a resume", flush=True)
    return {"combinations": len(differences), "largest_loss_difference_after_resume": max(differences)}


def _difference_after_resume(combination: Combination, runtime: TaskRuntime, *, folder: Path, gpu: bool) -> float:
    config = TrainingConfig(
        num_workers=1,
        gpus_per_worker=1 if gpu else 0,
        epochs=1,
        batch_size=BATCH_SIZE,
        checkpoint_interval_s=0,
        zero_stage=combination.zero_stage,
        method=combination.method,
        gradient_checkpointing=combination.gradient_checkpointing,
        offload=combination.offload,
    )
    saved = folder / "checkpoint"

    def on_save(progress: Progress, engine: Any) -> None:
        if progress.step == CHECKPOINT_AT and not saved.exists():
            saved.mkdir()
            checkpoint.save(engine, config, folder=saved, progress=progress)

    engine = build_engine(config, runtime)
    whole = train(engine, config, runtime=runtime, callbacks=Callbacks(on_save=on_save))
    export_weights(engine, config, runtime=runtime, folder=folder / "weights")
    destroy_engine(engine)
    engine, progress = checkpoint.resume(config, runtime, uri=saved.as_uri())
    assert progress.step == CHECKPOINT_AT
    resumed = train(engine, config, runtime=runtime, progress=progress)
    destroy_engine(engine)
    if not math.isfinite(whole.loss):
        raise ValueError(f"the loss is {whole.loss}")
    return abs(resumed.loss - whole.loss) / abs(whole.loss)
