"""Two re-evaluations of a champion in local folders. An integration test covers Ray, S3 and a
served rollback."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.progress import SILENT
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.fingerprints import fingerprints
from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.gates.cost import ServingUsage, TrainingUsage
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import CandidateRecord, CostRecord
from tailorbird.operate import reevaluate
from tailorbird.operate.reevaluate import ReevaluationError, protocol_for, reevaluate_champion
from tailorbird.registry.versions import (
    ModelVersion,
)
from tests import build
from tests.build import predictions, version
from tests.finished_runs import write_finished_run
from tests.unit.operate.test_reevaluation_evidence import champion_since
from tests.unit.pipeline.contexts import recipe_at

OLD = "s3://m/t/versions/probe-1"
NEW = "s3://m/t/versions/full-1"
RIGHT = {OLD: 8, NEW: 9}
"""Right answers of ten rows, by version."""
WORSE = {OLD: 9, NEW: 8}


def rows(size: int) -> Rows:
    texts = [f"request {number} about a subject" for number in range(size)]
    return build.rows(texts, ["a"] * size)


def predict(uri: str, *, rows: Rows, limits: RequestLimits, on_gpu: bool = False) -> Predictions:
    assert not on_gpu  # replicas of the recipe have no GPU
    assert limits.named == ()  # the recipe has no endpoint
    numbers = [int(row_id.partition("|")[0]) for row_id in rows.row_ids]
    outputs = ["a" if number % 10 < RIGHT[uri] else "b" for number in numbers]
    return predictions(outputs, rows.labels, model=uri, row_ids=rows.row_ids)


def version_at(uri: str) -> ModelVersion:
    return version(uri.rpartition("/")[2], uri=uri)


@pytest.fixture
def accesses(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The recorded accesses; the champion, its predictions and its splits need neither Ray nor
    S3."""
    recorded: list[dict[str, Any]] = []
    champion = champion_since("2026-03-01T00:00:00+00:00")
    splits = Splits(rows(5), rows(0), rows(0))
    replaced = {
        "rollback_target": lambda *_, **__: (champion, version_at(OLD), "etag"),
        "read_pinned": lambda pinned: version_at(pinned.uri),
        "champion_version": lambda _: version_at(NEW),
        "load_inputs": lambda _: SimpleNamespace(splits=splits),
        "run_remote": lambda *_, **__: predict,
        "record_test_access": lambda _, **access: recorded.append(access),
        # The versions are not stored, and are no endpoints.
        "endpoint_answers": lambda *_, **__: {},
        "training_fingerprints": lambda _: None,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(reevaluate, name, value)
    return recorded


def audit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(
        reevaluate, "audited_rows", lambda _, *, since: rows(size) if since.month == 3 else rows(0)
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    gates = dict.fromkeys(("calibration", "groups", "counterfactual", "robustness"))
    return recipe_at(tmp_path, evaluation={"gates": gates})


def test_a_reevaluation_uses_all_audited_rows_and_records_only_the_new_ones_as_an_access(
    recipe: Recipe, accesses: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(monkeypatch, 205)
    first = reevaluate_champion(recipe, progress=SILENT)
    assert (first.verdict.n, len(accesses[0]["rows"])) == (200, 200)
    assert accesses[0]["models"] == [OLD, NEW]
    assert first.verdict.gain == pytest.approx(0.1)
    monkeypatch.setattr(reevaluate, "now", lambda: "2099-01-01T00:00:00+00:00")
    audit(monkeypatch, 305)
    second = reevaluate_champion(recipe, progress=SILENT)
    assert (second.verdict.n, len(accesses[1]["rows"])) == (300, 100)
    assert np.ptp(second.verdict.interval) < np.ptp(first.verdict.interval)
    assert second.verdict.holds is True
    stored = storage.read_json(f"{second.uri}/evidence.json")
    assert (stored["data"]["num_new"], stored["data"]["dropped"]["train"]) == (100, 5)
    assert stored["expires_at"] == "2100-01-01T00:00:00+00:00"
    audit(monkeypatch, 354)
    with pytest.raises(ReevaluationError, match="49"):
        reevaluate_champion(recipe, progress=SILENT)


@pytest.mark.usefixtures("accesses")
def test_the_evidence_states_the_answers_that_an_endpoint_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = AnswerCounts(200, refused=2, truncated=0, empty=0)
    monkeypatch.setattr(reevaluate, "endpoint_answers", lambda *_, **__: {"candidate": refused})
    audit(monkeypatch, 205)
    stored = storage.read_json(f"{reevaluate_champion(recipe, progress=SILENT).uri}/evidence.json")
    assert stored["endpoint_answers"] == {"candidate": asdict(refused)}


@pytest.mark.usefixtures("accesses")
def test_a_withdrawn_verdict_is_not_decided_again_without_new_rows(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A re-evaluation that failed after its predictions can be repeated."""

    def fail(*_: object, **__: object) -> str:
        raise OSError("the storage is away")

    audit(monkeypatch, 205)
    monkeypatch.setattr("tests.unit.operate.test_reevaluate.RIGHT", WORSE)
    with monkeypatch.context() as patched:
        patched.setattr(reevaluate, "write_reevaluation", fail)
        with pytest.raises(OSError, match="the storage is away"):
            reevaluate_champion(recipe, progress=SILENT)
    withdrawn = reevaluate_champion(recipe, progress=SILENT)
    assert (withdrawn.verdict.n, withdrawn.verdict.holds) == (200, False)
    with pytest.raises(ReevaluationError, match="only 0"):
        reevaluate_champion(recipe, progress=SILENT)


@pytest.mark.usefixtures("accesses")
def test_rows_that_one_of_both_versions_was_trained_on_are_not_compared(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(monkeypatch, 205)
    learned = {OLD: fingerprints(rows(20).texts), NEW: None}
    monkeypatch.setattr(reevaluate, "training_fingerprints", lambda version: learned[version.uri])
    result = reevaluate_champion(recipe, progress=SILENT)
    assert result.verdict.n == 185
    dropped = storage.read_json(f"{result.uri}/evidence.json")["data"]["dropped"]
    assert dropped["trained"] == 15  # 5 are in train


def test_an_exported_champion_has_the_cost_of_the_same_weights(recipe: Recipe) -> None:
    records = {
        "incumbent": CandidateRecord("probe", OLD, "old"),
        "candidate": CandidateRecord("full", NEW, "new"),
    }
    usage = {
        "incumbent": ServingUsage((2.0,) * 5),
        "candidate": ServingUsage((1.0,) * 5),
    }
    cost = CostRecord(usage, TrainingUsage())
    run = f"{recipe.task_uri}/runs/r"
    write_finished_run(run, versions=records, cost=cost)
    champion = champion_since("2026-03-01T00:00:00+00:00").model_copy(update={"run": run})
    for digest, stated in (("new", cost), ("other", CostRecord(None, TrainingUsage()))):
        versions = {"incumbent": version(digest="old"), "candidate": version(digest=digest)}
        assert protocol_for(champion, recipe=recipe, rows=rows(9), versions=versions)[1] == stated
