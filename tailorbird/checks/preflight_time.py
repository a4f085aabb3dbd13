"""The expected duration of each stage of a run, as results of `preflight`."""

from cluster.connection import connect
from cluster.display.state import estimate
from cluster.progress import PlanEvent, ProgressReporter
from tailorbird.checks.result import CheckResult, fault, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.pipeline.estimate import estimate_run
from tailorbird.pipeline.inputs import inspect_inputs
from tailorbird.pipeline.tasks import task_of


def expected_time(recipe: Recipe, *, progress: ProgressReporter) -> tuple[CheckResult, ...]:
    """Return the expected duration of the run and of each stage, by rates that the cluster measures on a few rows.

    Call it only if no check has a fault. It reads and checks the rows, as a run does, and returns a fault if a run
    would refuse them.
    """
    progress.stage("expected time: reading the rows, and measuring the speed of a worker on a few of them")
    try:
        inputs = inspect_inputs(recipe)
        if inputs is None:
            return (note("expected time", "not estimated, because the training rows are streamed"),)
        with connect():
            return time_results(estimate_run(inputs, task_of(inputs)))
    except ValueError as error:
        return (fault("rows", str(error)),)


def time_results(plan: PlanEvent) -> tuple[CheckResult, ...]:
    """Return a result for the whole run and one for each stage; a note if no stage was estimated."""
    if not plan.stages:
        return (note("expected time", f"not estimated: {plan.text}"),)
    total = sum(stage.seconds or 0.0 for stage in plan.stages)
    unknown = [stage.name for stage in plan.stages if stage.seconds is None]
    without = f" without {' and '.join(unknown)}" if unknown else ""
    stages = (ok(stage.name, f"{estimate(stage.seconds)}: {stage.basis}") for stage in plan.stages)
    return (ok("expected time", f"{estimate(total)}{without} ({plan.text})"), *stages)
