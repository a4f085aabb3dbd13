"""The check of `tailorbird preflight` that reads the rows."""

from cluster.progress import ProgressReporter
from tailorbird.checks.result import CheckResult, fault, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.pipeline.inputs import inspect_rows


def check_rows(recipe: Recipe, *, progress: ProgressReporter) -> CheckResult:
    """Read and check the rows, as a run does. Call it only if no check has a fault."""
    progress.stage("rows: reading and checking them")
    try:
        data = inspect_rows(recipe)
    except ValueError as error:
        return fault("rows", str(error))
    if data is None:
        return note("rows", "not read, because the training rows are streamed")
    splits = data.splits
    return ok(
        "rows",
        f"{len(splits.train):,} train, {len(splits.validation):,} validation, "
        f"{len(splits.test):,} test",
    )
