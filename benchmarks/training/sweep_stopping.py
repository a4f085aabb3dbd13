"""Training time that early stopping saves: eight trials with stopping, against the same eight
trials without.

    python -m benchmarks.training.sweep_stopping

Both sweeps train MiniLM on ICD-10-CM terms with two workers at stage 1, with the baselines and the
target of a run, and learning rates between 1e-5 and 1e-3. They sample at random with the same seed,
so they try the same configurations. The cost is the time in training steps; the time of the whole
sweeps, with start, validation and exports, is printed too.

The saving depends on the order of the configurations. Replaying the rules on the full curves gives
0.34 to 0.62 of the epochs over all orders of these eight (5th to 95th percentile). The scores of
the selected trials are also printed: with as few steps per epoch as here, ASHA stops good trials
after their first epoch, so `tuning.grace_epochs` should be more than one.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.material import MAX_LENGTH, icd10_task, own_stack
from benchmarks.rounds import finish, print_table
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tailorbird.data.rows import Rows
from training.classification_task import ClassificationTrainingTask
from training.task import TrainingTask
from tuning.futility import Target, set_target

NUM_ROWS, NUM_TRIALS, EPOCHS = 256, 8, 4
MINIMUM_GAIN = 0.01
TRAINING = TrainingConfig(zero_stage=1, num_workers=2, epochs=EPOCHS, batch_size=32)
SPACE = {"learning_rate": Distribution(log_uniform=(1e-5, 1e-3))}
STOPPING = TuningConfig(num_trials=NUM_TRIALS, search="random", space=SPACE)
TO_THE_END = STOPPING.model_copy(update={"grace_epochs": EPOCHS})
"""With grace_epochs equal to the number of epochs, ASHA stops no trial. Without a target, no other
rule does."""
BOUNDS = {"cost_ratio": "<= 0.6"}


def main() -> None:
    """Print both sweeps, then one line of JSON."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-") as folder,
        own_stack(Path(folder), num_cpus=2) as base_model,
    ):
        task = icd10_task(base_model, num_rows=NUM_ROWS)
        target = _target(task)
        print(f"target: {target.text}", flush=True)
        complete = _sweep(
            TO_THE_END, task=task, target=Target(target.baselines, 0.0, ""), uri="s3://models/whole"
        )
        stopped = _sweep(STOPPING, task=task, target=target, uri="s3://models/stopped")
    assert complete["epochs"] == NUM_TRIALS * EPOCHS
    print_table(
        f"Sweep of {NUM_TRIALS} trials of {EPOCHS} epochs",
        {"to the end": complete, "with stopping": stopped},
    )
    figures = {
        "cost_ratio": stopped["training_seconds"] / complete["training_seconds"],
        "epochs_ratio": stopped["epochs"] / complete["epochs"],
        "whole_seconds_ratio": stopped["whole_seconds"] / complete["whole_seconds"],
        "selected_score": stopped["selected_score"],
        "selected_score_to_the_end": complete["selected_score"],
    }
    finish("sweep_stopping", figures, bounds=BOUNDS)


def _target(task: ClassificationTrainingTask) -> Target:
    from cluster.remote import run_remote
    from cluster.resources import worker_resources
    from tailorbird.evaluation.baselines.classification import fit_baselines

    assert isinstance(task.train, Rows)
    results = run_remote(fit_baselines, resources=worker_resources(TRAINING))(
        task.base_model,
        train=task.train,
        validation=task.validation,
        max_length=MAX_LENGTH,
        config=EvaluationConfig(),
        seed=0,
    )
    baselines = [fitted.baseline for fitted in results.fitted]
    return set_target(baselines, minimum_gain=MINIMUM_GAIN)


def _sweep(config: TuningConfig, *, task: TrainingTask, target: Target, uri: str) -> dict[str, Any]:
    from tuning.sweep import (
        sweep,
    )  # Import Ray after the stack has started, because it reads its token on import.

    started = time.time()
    result = sweep(config, training=TRAINING, task=task, target=target, uri=uri)
    seconds = time.time() - started
    trials = [row for row in result.rows if row.status != "baseline"]
    for row in trials:
        scores = ", ".join(f"{score:.4f}" for score in row.scores)
        print(f"  {row.config['learning_rate']:.2e}  {scores:<32}  {row.status}", flush=True)
    print(f"  ended early: {result.ended}", flush=True)
    return {
        "training_seconds": sum(row.seconds for row in trials),
        "epochs": sum(len(row.scores) for row in trials),
        "whole_seconds": seconds,
        "selected_score": result.trained.score,
    }


if __name__ == "__main__":
    main()
