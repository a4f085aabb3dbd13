"""`preflight` states the expected duration of each stage, and faults of the rows."""

from pathlib import Path

import pytest

from cluster.progress import SILENT, PlanEvent, PlannedStage
from tailorbird.checks import preflight_time
from tailorbird.checks.preflight_time import expected_time, time_results
from tailorbird.checks.result import fault, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import DataError
from tests.unit.pipeline.contexts import recipe_at


def test_the_run_and_each_stage_have_an_expected_duration() -> None:
    stages = (PlannedStage("baselines", 40.0, "500 rows at 12 rows/s"), PlannedStage("sweep", 320.0, "4 trials"))
    assert time_results(PlanEvent(stages, "rates of 16 rows")) == (
        ok("expected time", "about 6 min (rates of 16 rows)"),
        ok("baselines", "about 40 s: 500 rows at 12 rows/s"),
        ok("sweep", "about 5 min: 4 trials"),
    )


def test_stages_of_unknown_duration_are_not_part_of_the_sum() -> None:
    stages = (PlannedStage("baselines", 40.0, "500 rows at 12 rows/s"), PlannedStage("endpoint", None, "9 requests"))
    total, _, unknown = time_results(PlanEvent(stages, "rates of 16 rows"))
    assert total == ok("expected time", "about 40 s without endpoint (rates of 16 rows)")
    assert unknown == ok("endpoint", "unknown: 9 requests")


def test_a_plan_without_stages_is_a_note() -> None:
    assert time_results(PlanEvent((), "no speed was measured")) == (
        note("expected time", "not estimated: no speed was measured"),
    )


def test_rows_that_a_run_refuses_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Recipe) -> None:
        raise DataError("train has no rows left; give more rows")

    monkeypatch.setattr(preflight_time, "inspect_inputs", refuse)
    results = expected_time(recipe_at(tmp_path), progress=SILENT)
    assert results == (fault("rows", "train has no rows left; give more rows"),)


def test_streamed_rows_are_not_read_for_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_time, "inspect_inputs", lambda _: None)
    results = expected_time(recipe_at(tmp_path), progress=SILENT)
    assert results == (note("expected time", "not estimated, because the training rows are streamed"),)
