"""Tests of what preflight knows of the test rows and prices before the run."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.checks.planned_test import PlannedTest, check_documents, check_prices
from tailorbird.checks.preflight_facts import inspect_tables, planned_test
from tailorbird.config.recipe import Recipe
from tests import build


def test_the_test_rows_and_their_documents_are_counted_from_the_data(tmp_path: Path) -> None:
    columns = {"text": [f"row {row}" for row in range(100)], "label": ["a", "b"] * 50}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    data = {"train": f"file://{tmp_path}/rows.parquet"}
    recipe = build.recipe(data=data)
    assert planned_test(recipe, inspect_tables(recipe)) == PlannedTest(17)
    given = data | {"test": data["train"], "max_test_rows": 50, "split_by": "label"}
    recipe = build.recipe(data=given)
    planned = planned_test(recipe, inspect_tables(recipe))
    assert planned == PlannedTest(50, "label", num_documents=2)


@pytest.mark.parametrize(("num_documents", "num_lines"), [(None, 0), (5, 1), (6, 0)])
def test_fewer_documents_than_an_interval_needs_are_reported_before_the_run(
    num_documents: int | None, num_lines: int
) -> None:
    lines = list(check_documents(PlannedTest(3_000, split_by="case", num_documents=num_documents)))
    assert len(lines) == num_lines
    for line in lines:
        assert line.state == "note"
        assert "'case' has 5 different values" in line.message
        assert "at least 6, so the verdict would be INSUFFICIENT_EVIDENCE" in line.message


def recipe_with(
    cost: dict[str, float], *, endpoint: dict[str, str] | None = None, **serving: float
) -> Recipe:
    evaluation = {
        "metric": "exact_match",
        "cost": {"value_of_correct": 1, "requests_per_month": 1} | cost,
        "contenders": {} if endpoint is None else {"hosted": {"endpoint": endpoint}},
    }
    return build.recipe(task="chat", serving=serving, evaluation=evaluation)


def test_each_missing_price_of_something_that_is_used_is_named() -> None:
    endpoint = {"url": "https://host/v1", "model": "m"}
    (line,) = check_prices(recipe_with({}, endpoint=endpoint, gpus_per_replica=1))
    assert line.state == "note"
    for name in (
        "price_per_cpu_hour",
        "price_per_gpu_hour",
        "evaluation.contenders.hosted.endpoint.prices",
    ):
        assert name in line.message
    (line,) = check_prices(recipe_with({"price_per_cpu_hour": 0.1}, endpoint=endpoint))
    assert line.message.startswith("evaluation.contenders.hosted.endpoint.prices is not set, so")
    (line,) = check_prices(recipe_with({"price_per_cpu_hour": 0.1}))
    assert line.state == "ok"
