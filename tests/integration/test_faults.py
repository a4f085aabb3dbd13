"""Faults in the middle of a training: whatever fails, the epochs' losses are those of a run that nothing disturbed."""

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from cluster.progress import Event, Show, relayed
from cluster.session import connect
from recipes.schema import TrainingSection
from tests.integration.small import REGISTRY, Heard
from tests.integration.test_training import a_worker, training_task
from training.material import TrainingTask
from training.trainer import finetune

NUM_ROWS, BATCH_SIZE = 1200, 8
DOWN_S = 20


def section_of(**fields: Any) -> TrainingSection:
    values = {"method": "lora", "epochs": 2, "batch_size": BATCH_SIZE, "learning_rate": 1e-3}
    return TrainingSection.model_validate(values | fields)


def ends(heard: Heard) -> set[tuple[int, float, float]]:
    return {(event["epoch"], event["loss"], event["score"]) for event in heard.of_kind("epoch")}


def steps(heard: Heard, *, epoch: int) -> list[int]:
    """What was said of an epoch's steps, by their numbers."""
    return [event["step"] for event in heard.of_kind("step") if event["epoch"] == epoch]


class Struck(Heard):
    """Hears a training, and strikes once, at the first word of a step of the second epoch from `step` on."""

    def __init__(self, strike: Callable[[], None], *, step: int = 2) -> None:
        super().__init__()
        self.strike, self.step, self.struck = strike, step, False

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event["event"] == "step" and event["epoch"] == 1 and event["step"] >= self.step and not self.struck:
            self.struck = True
            self.strike()


def run(section: TrainingSection, task: TrainingTask, *, heard: Show, uri: str | None = None) -> None:
    with connect(), relayed(heard) as relay:
        finetune(section, task=task, uri=uri or f"{REGISTRY}/training-{uuid.uuid4().hex}", relay=relay)
    if isinstance(heard, Struck):
        assert heard.struck


@pytest.fixture(scope="module")
def task(small_data: str) -> TrainingTask:
    return training_task(small_data, num_rows=NUM_ROWS)


@pytest.fixture(scope="module")
def undisturbed(task: TrainingTask) -> set[tuple[int, float, float]]:
    """What each epoch of such a training ends with."""
    heard = Heard()
    run(section_of(), task, heard=heard)
    return ends(heard)


@pytest.mark.slow
def test_sigterm_keeps_the_very_step_and_training_goes_on_from_it(
    task: TrainingTask, undisturbed: set[tuple[int, float, float]]
) -> None:
    heard = Struck(lambda: os.kill(a_worker(), signal.SIGTERM))
    run(section_of(), task, heard=heard)
    assert ends(heard) == undisturbed
    told = steps(heard, epoch=1)
    assert told == sorted(set(told))  # no step was computed twice: the only checkpoint before was the epoch's start


@pytest.mark.slow
def test_workers_killed_at_any_moment_leave_no_trace_in_the_losses(
    task: TrainingTask, undisturbed: set[tuple[int, float, float]]
) -> None:
    seed = random.randrange(1 << 30)
    chance, kills = random.Random(seed), 3
    ticks = threading.Event()
    heard = Heard()
    num_steps = NUM_ROWS // BATCH_SIZE
    due = [chance.randrange(int(1.6 * num_steps)) for _ in range(kills)]

    def show(event: Event) -> None:
        heard(event)
        done = event["epoch"] * num_steps + event.get("step", 0)
        if due and event["event"] == "step" and done > min(due):
            ticks.wait(chance.random())  # so that it is within a step, a checkpoint or its upload
            with suppress(IndexError, ProcessLookupError):  # the group of this step may be gone already
                os.kill(a_worker(), signal.SIGKILL)
                due.remove(min(due))

    run(section_of(checkpoint_interval_s=1, max_failures=kills), task, heard=show)
    assert due == [], f"seed {seed}"
    assert ends(heard) == undisturbed, f"seed {seed}"
