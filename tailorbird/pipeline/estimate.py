"""The expected durations of the trainings of a run, from the first steps that are measured."""

from math import ceil

from cluster.display.state import rate
from cluster.progress import PlanEvent, PlannedStage, ProgressEvent, ProgressReporter, StepEvent
from tailorbird.config.recipe import Recipe
from tuning.worker_groups import num_groups_that_fit


def planned_trainings(recipe: Recipe, first: StepEvent, *, groups: int) -> PlanEvent:
    """Return the expected durations of sweep and seeds if every training takes as long as the one
    of `first`.

    The cluster has room for `groups` trainings at the same time.
    """
    assert first.seconds_left is not None
    numbers = {"sweep": recipe.tuning.num_trials, "seeds": recipe.training.num_seeds - 1}
    at_once = {"sweep": recipe.tuning.trials_at_once(room=groups), "seeds": groups}
    stages = []
    for name, number in numbers.items():
        if number > 0:
            seconds = ceil(number / at_once[name]) * first.seconds_left
            basis = (
                f"{number} trainings, {min(number, at_once[name])} at once, at "
                f"{rate(first.rows_per_second)}"
            )
            stages.append(PlannedStage(name, seconds, basis))
    return PlanEvent(
        tuple(stages),
        "by the first steps; without validations, and trainings that stop early take less",
    )


def with_expected_time(progress: ProgressReporter, recipe: Recipe) -> ProgressReporter:
    """Return a reporter that also reports the expected durations, after the second step or later of
    a training."""
    is_planned = False

    def report(event: ProgressEvent) -> None:
        nonlocal is_planned
        progress.report(event)
        if (
            not is_planned
            and isinstance(event, StepEvent)
            and event.step > 1
            and event.seconds_left is not None
        ):
            is_planned = True
            progress.report(
                planned_trainings(recipe, event, groups=num_groups_that_fit(recipe.training))
            )

    return ProgressReporter(report)
