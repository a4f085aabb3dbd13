"""A run with a learning curve trains on parts of the rows and stores the curve in the evidence and
the report."""

from pathlib import Path

import pytest

from cluster.connection import connect
from cluster.progress import SILENT
from tailorbird import storage
from tailorbird.pipeline.run import run_pipeline
from tests.integration.small import small_recipe


@pytest.mark.long
def test_the_learning_curve_is_in_the_evidence_and_the_report(
    small_data: str, tmp_path: Path
) -> None:
    overrides = (
        "tuning.learning_curve=true",
        "data.max_train_rows=96",
        "tuning.num_trials=1",
        "tuning.space={}",
    )
    recipe = small_recipe(tmp_path, name="curve", data=small_data, overrides=overrides)
    with connect():
        result = run_pipeline(recipe, progress=SILENT)
    curve = result.evidence.curve
    assert curve is not None
    assert curve.sizes == (24, 48, 96)
    assert curve.scores[-1] == result.evidence.seeds[0].validation
    low, high = curve.interval
    assert 0 <= low <= curve.at_double <= high <= 1
    assert b'data-from="curve.at_double"' in storage.read_bytes(f"{result.run}/report.html")
