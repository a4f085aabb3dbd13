"""Overhead of a sweep: its time outside training steps, for eight trials on two workers at stage 1.

    python -m benchmarks.training.sweep_overhead

The benchmark calls `tuning.sweep.sweep` as a run does, on a separate stack, with worker groups,
Optuna, ASHA, validation and exports of the best trials to S3. The overhead per trial is the time of
the call without the seconds in training steps, divided by the number of trials. Every trial has one
epoch, so no trial is stopped early. The gap between two trials is the time on rank 0 from the last
step of one to the first step of the next. Memory is that of rank 0's process at the end of a trial;
its growth per trial counts from the second trial on, when everything is loaded.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.material import cpu_reader, icd10_task, own_stack
from benchmarks.rounds import finish, medians, print_table, take_turns
from cluster.progress import EpochEvent, StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from training.task import TrainingTask
from tuning.futility import Target

NUM_ROWS, NUM_TRIALS, NUM_ROUNDS = 128, 8, 2
BATCH_SIZE = 32
TUNING = TuningConfig(
    num_trials=NUM_TRIALS, space={"learning_rate": Distribution(log_uniform=(5e-5, 5e-4))}
)
TRAINING = TrainingConfig(zero_stage=1, num_workers=2, epochs=1, batch_size=BATCH_SIZE)
BOUNDS = {"seconds_beside_steps_a_trial": "<= 4.0"}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-") as folder,
        own_stack(Path(folder), num_cpus=2) as base_model,
    ):
        task = icd10_task(base_model, num_rows=NUM_ROWS)
        uris = iter(f"s3://models/sweep-overhead/{number}" for number in range(NUM_ROUNDS))
        rounds = take_turns({"sweep": lambda: _sweep(task, next(uris))}, rounds=NUM_ROUNDS)["sweep"]
    print_table(
        f"Sweep of {NUM_TRIALS} trials, two workers, stage 1",
        {f"round {number + 1}": figures for number, figures in enumerate(rounds)},
    )
    finish("sweep_overhead", medians(rounds), bounds=BOUNDS)


def _sweep(task: TrainingTask, uri: str) -> dict[str, float]:
    from tuning.sweep import (
        sweep,
    )  # Import Ray after the stack has started, because it reads its token on import.

    with cpu_reader() as (queue, read_events):
        started = time.time()
        result = sweep(
            TUNING, training=TRAINING, task=task, target=Target({}, 0.0, ""), uri=uri, events=queue
        )
        wall = time.time() - started
        events = read_events()
    trials = [row for row in result.rows if row.status != "baseline"]
    assert [row.status for row in trials] == ["completed"] * NUM_TRIALS
    steps = [(row.event, row.time) for row in events if isinstance(row.event, StepEvent)]
    firsts, lasts = _ends(steps, first=True), _ends(steps, first=False)
    memory = [row.rss for row in events if isinstance(row.event, EpochEvent)]
    return {
        "seconds_beside_steps_a_trial": (wall - sum(row.seconds for row in trials)) / NUM_TRIALS,
        "seconds_to_first_step": _step_begin(*firsts[0]) - started,
        "gap_seconds_between_trials": median(
            _step_begin(*first) - last[1]
            for last, first in zip(lasts[:-1], firsts[1:], strict=True)
        ),
        "seconds_after_last_step": started + wall - lasts[-1][1],
        "memory_growth_mib_a_trial": (memory[-1] - memory[1]) / (NUM_TRIALS - 2) / 2**20,
    }


def _ends(steps: list[tuple[StepEvent, float]], *, first: bool) -> list[tuple[StepEvent, float]]:
    """Return the first or last step event of each trial with its time, in the order of the
    trials."""
    ends: dict[str | None, tuple[StepEvent, float]] = {}
    for step, at in steps:
        if not (first and step.trial in ends):
            ends[step.trial] = step, at
    return list(ends.values())


def _step_begin(step: StepEvent, at: float) -> float:
    """Return the time at which the trial's first step began, from the mean rate in a step event."""
    return at - step.step * BATCH_SIZE / step.rows_per_second


if __name__ == "__main__":
    main()
