"""Overhead of a sweep: its time outside training steps, for eight trials on two workers at stage 1.

    python -m benchmarks.training.sweep_overhead

The benchmark calls `tuning.sweep.sweep` as a run does, on a separate stack, with worker groups,
Optuna, ASHA, validation and exports of the best trials to S3. The overhead per trial is the time of
the call without the seconds in training steps, divided by the number of trials. Every trial has one
epoch, so no trial is stopped early.
"""

import time
from functools import partial
from itertools import count

from benchmarks.harness import ENCODER, Figures, finish, medians, separate_stack, stage, take_turns
from benchmarks.training.training_overhead import icd10_task
from cluster.connection import connect
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from training.task import TrainingTask

NUM_ROWS = 128
NUM_TRIALS = 8
NUM_ROUNDS = 2
TUNING = TuningConfig(
    num_trials=NUM_TRIALS, space={"learning_rate": Distribution(log_uniform=(5e-5, 5e-4))}
)
TRAINING = TrainingConfig(zero_stage=1, num_workers=2, epochs=1, batch_size=32)
BOUNDS = {"seconds_beside_steps_a_trial": "<= 4.0"}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with separate_stack(num_cpus=2), connect():
        task = icd10_task(stage(ENCODER), num_rows=NUM_ROWS)
        variants = {"sweep": partial(_sweep, task, count())}
        rounds = take_turns(variants, rounds=NUM_ROUNDS)["sweep"]
    finish("sweep_overhead", medians(rounds), bounds=BOUNDS)


def _sweep(task: TrainingTask, numbers: "count[int]") -> Figures:
    # Ray is imported after the stack has started, because it reads its token on import.
    from tuning.sweep import sweep

    started = time.time()
    result = sweep(
        TUNING,
        training=TRAINING,
        tasks={"base": task},
        baselines={},
        uri=f"s3://models/sweep-overhead/{next(numbers)}",
    )
    wall = time.time() - started
    trials = [row for row in result.rows if row.status != "baseline"]
    assert [row.status for row in trials] == ["completed"] * NUM_TRIALS
    in_steps = sum(row.seconds for row in trials)
    return {"seconds_beside_steps_a_trial": (wall - in_steps) / NUM_TRIALS}


if __name__ == "__main__":
    main()
