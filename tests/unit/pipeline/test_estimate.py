"""The expected durations of the trainings, from their first steps."""

from pathlib import Path

import pytest

from cluster.progress import PlanEvent, PlannedStage, ProgressReporter, StepEvent
from tailorbird.pipeline import estimate
from tailorbird.pipeline.estimate import planned_trainings, with_expected_time
from tests.progress import ProgressRecorder
from tests.unit.pipeline.contexts import recipe_at


def step(number: int) -> StepEvent:
    return StepEvent(0, number, 100, 0.5, 25.0, seconds_left=60.0)


def test_trials_and_seeds_take_as_long_as_the_first_training(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, training={"num_seeds": 3}, tuning={"num_trials": 5})
    plan = planned_trainings(recipe, step(2), groups=2)
    assert plan.stages == (
        PlannedStage("sweep", 180.0, "5 trainings, 2 at once, at 25 rows/s"),
        PlannedStage("seeds", 60.0, "2 trainings, 2 at once, at 25 rows/s"),
    )
    alone = recipe_at(tmp_path, training={"num_seeds": 1}, tuning={"num_trials": 1})
    (stage,) = planned_trainings(alone, step(2), groups=1).stages
    assert stage.name == "sweep"


def test_durations_are_reported_once_and_not_by_the_slow_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # reads the resources of a Ray cluster
    monkeypatch.setattr(estimate, "num_groups_that_fit", lambda _: 1)
    recorder = ProgressRecorder()
    progress: ProgressReporter = with_expected_time(recorder, recipe_at(tmp_path))
    for number in (1, 2, 3):
        progress.report(step(number))
    kinds = [type(event) for event in recorder.events]
    assert kinds == [StepEvent, StepEvent, PlanEvent, StepEvent]
