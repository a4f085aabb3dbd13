"""Two re-evaluations of a champion in local folders. An integration test covers Ray, S3 and a
served rollback."""

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
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import CandidateRecord, CostRecord
from tailorbird.models.endpoint.prompts import label_answer, label_prompting
from tailorbird.operate import reevaluate
from tailorbird.operate.reevaluate import ReevaluationError, protocol_for, reevaluate_champion
from tailorbird.pipeline.cost import endpoint_answers
from tailorbird.registry import security_log
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import (
    PinnedVersion,
    VersionConfig,
    register,
    write_artifact_config,
)
from tests.endpoint_server import MODEL, Reply, completion, endpoint_server, question, refusal
from tests.finished_runs import write_finished_run
from tests.unit.operate.test_reevaluation_evidence import champion_since
from tests.unit.pipeline.contexts import recipe_at, rows_of

OLD, NEW = "s3://m/t/versions/probe-1", "s3://m/t/versions/full-1"


def rows(size: int) -> Rows:
    return rows_of([f"request {number} about a subject" for number in range(size)], ["a"] * size)


def predict(uri: str, *, rows: Rows, limits: RequestLimits, on_gpu: bool = False) -> Predictions:
    """Return predictions: the champion is right on nine of ten rows, the previous version on
    eight."""
    assert not on_gpu  # replicas of the recipe have no GPU
    assert limits.max_spend is None  # the recipe has no endpoint
    limit = 9 if uri == NEW else 8
    right = np.array([int(row_id.partition("|")[0]) % 10 < limit for row_id in rows.row_ids])
    unsure = np.full(len(rows), 0.5)
    outputs = tuple(np.where(right, "a", "b").tolist())
    return Predictions(
        uri, rows.row_ids, rows.labels, outputs, right.astype(np.float64), unsure, unsure
    )


def other(uri: str) -> str:
    return OLD if uri == NEW else NEW


@pytest.fixture
def accesses(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The recorded accesses; the champion, its predictions and its splits need neither Ray nor
    S3."""
    recorded: list[dict[str, Any]] = []
    pinned = {uri: PinnedVersion(uri=uri, digest="d") for uri in (OLD, NEW)}
    versions = {
        uri: SimpleNamespace(
            uri=uri, version=uri[-7:], digest="d", pinned=pinned[uri], exported_from=None
        )
        for uri in pinned
    }
    champion, splits = (
        champion_since("2026-03-01T00:00:00+00:00"),
        Splits(rows(5), rows(0), rows(0)),
    )
    replaced = {
        "rollback_target": lambda *_, **__: (
            champion,
            SimpleNamespace(uri=OLD, pinned=pinned[OLD]),
            "etag",
        ),
        "read_pinned": lambda pinned: versions[pinned.uri],
        "champion_version": lambda _: versions[NEW],
        "load_inputs": lambda _: SimpleNamespace(splits=splits),
        "run_evaluation": lambda *_, **__: predict,
        "record_test_access": lambda _, **access: recorded.append(access),
        # the versions are not stored, and are no endpoints
        "endpoint_answers": lambda *_, **__: {},
        "training_fingerprints": lambda _: None,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(reevaluate, name, value)
    monkeypatch.setattr(security_log, "append", lambda *_, **__: None)
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
    assert (first.verdict.n, len(accesses[0]["rows"]), accesses[0]["models"]) == (
        200,
        200,
        [OLD, NEW],
    )
    assert first.verdict.gain == pytest.approx(0.1)
    monkeypatch.setattr(reevaluate, "now", lambda: "2099-01-01T00:00:00+00:00")
    audit(monkeypatch, 305)
    second = reevaluate_champion(recipe, progress=SILENT)
    assert (second.verdict.n, len(accesses[1]["rows"])) == (300, 100)
    assert np.ptp(second.verdict.interval) < np.ptp(first.verdict.interval)
    assert (second.verdict.holds, second.proposed) == (True, None)
    stored = storage.read_json(f"{second.uri}/evidence.json")
    assert (stored["data"]["num_new"], stored["data"]["dropped"]["train"]) == (100, 5)
    assert stored["expires_at"] == "2100-01-01T00:00:00+00:00"
    audit(monkeypatch, 404)
    with pytest.raises(ReevaluationError, match="99"):
        reevaluate_champion(recipe, progress=SILENT)


@pytest.mark.usefixtures("accesses")
def test_the_evidence_states_the_answers_that_an_endpoint_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        refused = question(body).startswith(("request 9 ", "request 19 "))
        return (
            refusal(400, "filtered", code="content_filter")
            if refused
            else completion(label_answer("a"))
        )

    audit(monkeypatch, 205)
    with endpoint_server(answer) as server:
        config = VersionConfig(
            kind="endpoint_zero_shot",
            classes=("a", "b"),
            base_model="s3://m/base",
            max_length=64,
            dtype="float32",
            code="",
            recipe_hash="",
            created_at="",
            prompting=label_prompting(("a", "b")),
            endpoint=Endpoint(url=server.url, model="m", reported_model=MODEL),
        )
        folder = tmp_path / "artifact"
        write_artifact_config(folder.as_uri(), config)
        version = register(recipe.task_uri, folder)
        replaced = {
            "champion_version": lambda _: version,
            "run_evaluation": lambda *_, **__: predict_rows,
            "endpoint_answers": endpoint_answers,
            "read_pinned": lambda _: version,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(reevaluate, name, value)
        result = reevaluate_champion(recipe, progress=SILENT)
        assert len(server.bodies) == 200
    counts = {"rows": 200, "refused": 2, "truncated": 0, "empty": 0}
    assert storage.read_json(f"{result.uri}/evidence.json")["endpoint_answers"] == {
        "incumbent": counts,
        "candidate": counts,
    }


@pytest.mark.usefixtures("accesses")
def test_a_reevaluation_that_failed_after_its_predictions_can_be_repeated(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("the storage is away")

    audit(monkeypatch, 205)
    monkeypatch.setattr(reevaluate, "propose_training", fail)
    with monkeypatch.context() as worse:
        worse.setattr(
            reevaluate,
            "run_evaluation",
            lambda *_, **__: lambda uri, **options: predict(other(uri), **options),
        )
        with pytest.raises(OSError, match="the storage is away"):
            reevaluate_champion(recipe, progress=SILENT)
    assert reevaluate_champion(recipe, progress=SILENT).verdict.n == 200


@pytest.mark.usefixtures("accesses")
def test_a_withdrawn_verdict_proposes_a_recipe_and_is_not_decided_again_without_new_rows(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(monkeypatch, 205)
    monkeypatch.setattr(reevaluate, "propose_training", lambda *_, **__: "s3://m/recipe.yaml")
    monkeypatch.setattr(
        reevaluate,
        "run_evaluation",
        lambda *_, **__: lambda uri, **options: predict(other(uri), **options),
    )
    withdrawn = reevaluate_champion(recipe, progress=SILENT)
    assert (withdrawn.verdict.holds, withdrawn.proposed) == (False, "s3://m/recipe.yaml")
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
    assert (
        storage.read_json(f"{result.uri}/evidence.json")["data"]["dropped"]["trained"] == 15
    )  # 5 are in train


def test_an_exported_champion_has_the_cost_of_the_same_weights(recipe: Recipe) -> None:
    record = {
        "incumbent": CandidateRecord("probe", OLD, "old"),
        "candidate": CandidateRecord("full", NEW, "new"),
    }
    run = f"{recipe.task_uri}/runs/r"
    cost = CostRecord(
        {"incumbent": ServingUsage((2.0,) * 5), "candidate": ServingUsage((1.0,) * 5)},
        TrainingUsage(),
    )
    write_finished_run(run, versions=record, cost=cost)
    champion = champion_since("2026-03-01T00:00:00+00:00").model_copy(
        update={"run": run, "digest": "export"}
    )
    previous, weights = SimpleNamespace(digest="old"), PinnedVersion(uri=NEW, digest="new")
    for exported_from, stated in ((weights, cost), (None, CostRecord(None, TrainingUsage()))):
        exported = SimpleNamespace(digest="export", exported_from=exported_from)
        versions: Any = {"incumbent": previous, "candidate": exported}
        assert protocol_for(champion, recipe=recipe, rows=rows(9), versions=versions)[1] == stated
