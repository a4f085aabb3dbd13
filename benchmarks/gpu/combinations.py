"""Five steps, an export and a resume for ten configurations that cover all pairs of their
settings."""

import itertools
import tempfile
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

NUM_STEPS, CHECKPOINT_AT, BATCH_SIZE, NUM_TOKENS = 5, 2, 4, 64
LEARNING_RATES = {"chat": 1e-2, "classification": 1e-3}
"""Rates at which lost moments of the optimizer change a loss by more than ten times the bound, in
each combination.

The loss of the second step after a resume is the first one that depends on them.
"""


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
        return (
            f"{self.task}, {self.method}, stage {self.zero_stage}, offload "
            f"{self.offload}{recomputes}"
        )


COMBINATIONS = (
    Combination(0, "full", "chat", False, "none"),
    Combination(0, "lora", "classification", True, "none"),
    Combination(1, "full", "chat", False, "optimizer"),
    Combination(1, "lora", "classification", True, "none"),
    Combination(2, "full", "classification", False, "none"),
    Combination(2, "lora", "chat", True, "optimizer"),
    Combination(3, "lora", "chat", True, "none"),
    Combination(3, "full", "chat", True, "parameters"),
    Combination(3, "lora", "classification", False, "optimizer"),
    Combination(3, "lora", "classification", False, "parameters"),
)
"""Each pair of values of two settings occurs, except for pairs that a recipe cannot have (offload
below its stage)."""


def check_combinations(folder: Path, reduced: bool) -> dict[str, float]:
    """Train, export and resume each combination.

    Return the number of combinations, and the largest relative difference of the loss of a step
    after a resume. Raises the first error, with the name of the combination.
    """
    sizes: Mapping[str, Any] = {
        "chat": LLAMA_TINY if reduced else LLAMA_SMALL,
        "classification": BERT_TINY if reduced else BERT_SMALL,
    }
    bases = {task: saved_model(folder, task, size) for task, size in sizes.items()}
    differences = []
    with process_group():
        for combination in COMBINATIONS:
            task = training_task(
                bases[combination.task],
                combination.task,
                num_rows=NUM_STEPS * BATCH_SIZE,
                num_tokens=NUM_TOKENS,
            )
            try:
                with tempfile.TemporaryDirectory(
                    dir=folder
                ) as own:  # the checkpoints of all would take 10 GB
                    differences.append(
                        difference_after_resume(
                            combination, task.load_runtime(), folder=Path(own), gpu=not reduced
                        )
                    )
            except Exception as error:
                raise RuntimeError(
                    f"{combination.name}: {type(error).__name__}: {error}"
                ) from error
            print(
                f"{combination.name}: loss differs by {differences[-1]:.2g} after a resume",
                flush=True,
            )
    return {
        "combinations": len(differences),
        "largest_loss_difference_after_resume": max(differences),
    }


def difference_after_resume(
    combination: Combination, runtime: TaskRuntime, *, folder: Path, gpu: bool
) -> float:
    """Return the largest relative difference of the loss of a step between a resumed and an
    uninterrupted training.

    The uninterrupted training writes a checkpoint to `folder` on its way, and is exported at its
    end.
    """
    config = TrainingConfig(
        num_workers=1,
        gpus_per_worker=1 if gpu else 0,
        epochs=1,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATES[combination.task],
        checkpoint_interval_s=0,  # losses are read after each step
        zero_stage=combination.zero_stage,
        method=combination.method,
        gradient_checkpointing=combination.gradient_checkpointing,
        offload=combination.offload,
    )
    saved = folder / "checkpoint"
    engine = build_engine(config, runtime)
    whole = _losses(engine, config, runtime, checkpoint_folder=saved)
    export_weights(engine, config, runtime=runtime, folder=folder / "weights")
    destroy_engine(engine)
    engine, progress = checkpoint.resume(config, runtime, uri=saved.as_uri())
    assert progress.step == CHECKPOINT_AT
    resumed = _losses(engine, config, runtime, progress=progress)
    destroy_engine(engine)
    assert len(resumed) == NUM_STEPS - CHECKPOINT_AT
    return max(
        abs(loss / before - 1) for loss, before in zip(resumed, whole[CHECKPOINT_AT:], strict=True)
    )


def _losses(
    engine: Any,
    config: TrainingConfig,
    runtime: TaskRuntime,
    *,
    progress: Progress | None = None,
    checkpoint_folder: Path | None = None,
) -> list[float]:
    """Train from `progress` to the end, and return the loss of each step. Write a checkpoint after
    `CHECKPOINT_AT`."""
    sums = [progress.losses if progress else 0.0]  # of the losses of the epoch's steps so far

    def on_save(progress: Progress, engine: Any) -> None:
        if progress.step < NUM_STEPS:
            sums.append(progress.losses)
        if progress.step == CHECKPOINT_AT and checkpoint_folder is not None:
            checkpoint_folder.mkdir()
            checkpoint.save(engine, folder=checkpoint_folder, progress=progress)

    report = train(
        engine, config, runtime=runtime, callbacks=Callbacks(on_save=on_save), progress=progress
    )
    sums.append(report.loss * NUM_STEPS)
    return [after - before for before, after in itertools.pairwise(sums)]
