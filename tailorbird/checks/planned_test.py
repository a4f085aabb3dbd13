"""What is known of the planned test before the run: its rows, its documents and its prices."""

from collections.abc import Iterator
from dataclasses import dataclass

from tailorbird.checks.result import CheckResult, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS


@dataclass(frozen=True)
class PlannedTest:
    """The number of test rows, and of their documents."""

    num_rows: int
    split_by: str | None = None  # column of the documents
    num_documents: int | None = None
    """Values of `split_by` in the rows of which the test rows are a part, or in the test rows."""


def check_documents(planned: PlannedTest) -> Iterator[CheckResult]:
    """Report if the test rows come from too few documents for an interval, because the outcome is
    then known."""
    if planned.num_documents is None or planned.num_documents >= LEAST_DOCUMENTS:
        return
    text = (
        f"data.split_by {planned.split_by!r} has {planned.num_documents:,} different values in the "
        f"rows for the test, but an interval needs at least {LEAST_DOCUMENTS}, so the verdict "
        "would be INSUFFICIENT_EVIDENCE"
    )
    yield note(
        "documents",
        text,
        "add test rows with other values, or remove split_by if the rows are independent",
    )


def check_prices(recipe: Recipe) -> Iterator[CheckResult]:
    """Name the missing prices, because the cost of a model that needs one of them is not
    assessable."""
    cost = recipe.evaluation.cost
    if cost is None:
        return
    on_gpu = recipe.serving.gpus_per_replica > 0 or recipe.training.gpus_per_worker > 0
    missing = {
        "evaluation.cost.price_per_cpu_hour": cost.price_per_cpu_hour is None,
        "evaluation.cost.price_per_gpu_hour": on_gpu and cost.price_per_gpu_hour is None,
    }
    for name, endpoint in recipe.evaluation.endpoints.items():
        missing[f"evaluation.contenders.{name}.endpoint.prices"] = endpoint.prices is None
    names = [name for name, holds in missing.items() if holds]
    if names:
        text = (
            f"{', '.join(names)} is not set, so the cost of the models that use it is not "
            "assessable"
        )
        if recipe.evaluation.regulated:
            stops = "; with evaluation.regulated, no such model is chosen"
        else:
            stops = ""
        yield note(
            "prices",
            f"{text}{stops}",
            "set the price (0 if free), or expect a cost gate that is not assessable",
        )
    else:
        yield ok("prices", "all resources that the recipe uses have a price")
