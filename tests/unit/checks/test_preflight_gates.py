"""Tests of the gates that preflight expects the test rows to settle, or not."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.checks.preflight_facts import inspect_tables, planned_test
from tailorbird.checks.preflight_gates import (
    PlannedTest,
    check_documents,
    check_gates,
    check_prices,
    pass_share,
)
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.recipe import Recipe
from tests import build

SMALL = {
    "site": {f"site {number}": int(size) for number, size in enumerate(np.geomspace(30, 1_000, 12))}
}


def config(**gates: object) -> EvaluationConfig:
    """Return an evaluation with these gates only, and an expected gain of three points."""
    off = dict.fromkeys(("calibration", "groups", "counterfactual", "robustness"))
    return EvaluationConfig.model_validate({"expected_gain": 0.03, "gates": off | gates})


def test_a_gate_that_seldom_passes_names_the_margin_and_the_rows_that_do() -> None:
    planned = PlannedTest(600, SMALL)
    (line,) = check_gates(config(groups={}), planned)
    assert (line.state, line.name) == ("note", "gate groups")
    assert "of simulated tests of 600 rows" in line.message
    named = re.search(r"use ([0-9.]+) times the max_loss", line.remedy)
    assert named is not None
    assert "merge small groups" in line.remedy
    margin = config(groups={}).gates.groups
    assert margin is not None
    wider = config(groups={"max_loss": float(named[1]) * margin.max_loss})
    assert pass_share("groups", config=wider, planned=planned) > 0.3
    assert pass_share("groups", config=config(groups={}), planned=planned) < 0.1


def test_300_rows_seldom_pass_and_3000_usually_do() -> None:
    (few,) = check_gates(config(counterfactual={}), PlannedTest(300))
    assert few.state == "note"
    assert "max_increase" in few.remedy
    assert "times the rows" in few.remedy
    (many,) = check_gates(config(counterfactual={}), PlannedTest(3_000))
    assert many.state == "ok"
    assert (
        pass_share(
            "calibration", config=config(calibration={}), planned=PlannedTest(300), num_tests=20
        )
        < 0.5
    )


def test_suites_are_simulated_by_their_rows() -> None:
    suites = {name: {"uri": f"s3://suites/{name}"} for name in ("a", "b")}
    (line,) = check_gates(config(suites=suites), PlannedTest(3_000, suites={"a": 150, "b": 150}))
    assert (line.state, line.name) == ("ok", "gate suites")
    (line,) = check_gates(config(suites=suites), PlannedTest(3_000, suites={"a": 150, "b": 20}))
    assert line.state == "note"
    assert list(check_gates(config(suites=suites), PlannedTest(3_000))) == []


def test_documents_are_named_because_the_simulation_counts_rows_as_independent() -> None:
    (line,) = check_gates(config(robustness={}), PlannedTest(3_000, split_by="case"))
    assert "counted as independent: documents of several rows by case settle less" in line.message
    (line,) = check_gates(config(robustness={}), PlannedTest(3_000))
    assert "independent" not in line.message


def test_the_test_rows_and_their_groups_are_counted_from_the_data(tmp_path: Path) -> None:
    columns = {
        "text": [f"row {row}" for row in range(100)],
        "label": ["a", "b"] * 50,
        "sex": ["f"] * 60 + ["m"] * 40,
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    data = {"train": f"file://{tmp_path}/rows.parquet", "groups": ["sex"]}
    recipe = build.recipe(data=data)
    assert planned_test(recipe, inspect_tables(recipe)) == PlannedTest(
        17, {"sex": {"f": 10, "m": 7}}
    )
    given = data | {"test": data["train"], "max_test_rows": 50, "split_by": "label"}
    recipe = build.recipe(data=given)
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
