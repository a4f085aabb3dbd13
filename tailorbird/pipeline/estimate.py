"""The expected duration of each stage of a run, from the rates of one worker on a handful of rows."""

from cluster.progress import PlanEvent
from tailorbird.pipeline.inputs import RunInputs
from tailorbird.pipeline.planned_stages import Sizes, planned_stages
from tailorbird.pipeline.tasks import Task
from training.reports import NOT_MEASURED
from tuning.worker_groups import num_groups_that_fit


def estimate_run(inputs: RunInputs, task: Task) -> PlanEvent:
    """Return the expected duration of each stage of a run, by rates that a Ray task measures now.

    The plan has no stages if the rates cannot be measured.
    """
    splits, training = inputs.splits, inputs.recipe.training
    sizes = Sizes(
        inputs.num_tuning_rows,
        len(splits.train),
        len(splits.validation),
        len(splits.test),
        classes=len(task.classes),
        groups=num_groups_that_fit(training),
        cost_rows=min(len(splits.test), task.num_cost_rows),
        suites=sum(map(len, inputs.data.suites.values())),
    )
    rates = task.measure_rates()
    if rates == NOT_MEASURED:
        return PlanEvent((), "the model and one micro-batch do not fit on one GPU, so no speed was measured")
    text = f"rates of one worker, measured on {rates.num_rows} rows; stages that stop early take less"
    return PlanEvent(planned_stages(inputs.recipe, sizes, rates=rates), text)
