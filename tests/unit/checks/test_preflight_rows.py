"""`preflight` reads the rows, and reports faults that a run would find."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.progress import SILENT
from tailorbird.checks import preflight_rows
from tailorbird.checks.preflight_rows import check_rows
from tailorbird.checks.result import fault, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import DataError
from tests.unit.pipeline.contexts import recipe_at


def test_rows_that_a_run_refuses_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Recipe) -> None:
        raise DataError("train has no rows left; give more rows")

    monkeypatch.setattr(preflight_rows, "inspect_rows", refuse)
    assert check_rows(recipe_at(tmp_path), progress=SILENT) == fault(
        "rows", "train has no rows left; give more rows"
    )


def test_the_number_of_rows_of_each_split_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = SimpleNamespace(train=range(1200), validation=range(300), test=range(500))
    monkeypatch.setattr(preflight_rows, "inspect_rows", lambda _: SimpleNamespace(splits=splits))
    expected = ok("rows", "1,200 train, 300 validation, 500 test")
    assert check_rows(recipe_at(tmp_path), progress=SILENT) == expected


def test_streamed_rows_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_rows, "inspect_rows", lambda _: None)
    expected = note("rows", "not read, because the training rows are streamed")
    assert check_rows(recipe_at(tmp_path), progress=SILENT) == expected
