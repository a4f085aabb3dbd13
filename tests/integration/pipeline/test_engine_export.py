"""Another engine for the weights that a verdict chose: it is tested on the cluster, recorded,
promoted and served."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import requests
import torch
from torch import nn

from cluster.connection import connect
from cluster.local.stack import StackState
from cluster.progress import SILENT, NoteEvent
from serving.deploy import rollout
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.recipe import Recipe
from tailorbird.data.datasets import icd10
from tailorbird.data.loader import read_test
from tailorbird.data.rows import DataError, rows_sha256
from tailorbird.data.tokenize import labels_of
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import (
    ENGINE_EVIDENCE,
    CandidateRecord,
    DataRecord,
    EngineEvidence,
    Evidence,
)
from tailorbird.evaluation.report.evidence_files import read_evidence
from tailorbird.evaluation.verdict.protocol import build_protocol
from tailorbird.models import base_model
from tailorbird.models.runtimes import EngineError
from tailorbird.registry import champion as champion_module
from tailorbird.registry import versions
from tailorbird.release import engine_export
from tailorbird.release.engine_export import version_for_engine
from tailorbird.release.promotion import promote_version, roll_back
from tailorbird.release.runs import PromotionRefused
from tailorbird.release.serving import serve_champion
from tests.finished_runs import candidate_record, write_finished_run
from tests.integration.small import BASE_MODEL, REGISTRY, embeddings, register_head
from tests.progress import ProgressRecorder
from tests.unit.evaluation.simulated import Simulation, report_of

pytestmark = pytest.mark.usefixtures("connected")

DATA = "s3://lake/engines"
TASK_URI = "s3://models/engines"
GATES = ("calibration", "groups", "counterfactual", "robustness")


@pytest.fixture(autouse=True)
def few_cost_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_export, "NUM_COST_ROWS", 64)


@pytest.fixture(scope="module")
def evaluated(stack: StackState, tmp_path_factory: pytest.TempPathFactory) -> versions.ModelVersion:
    """A version with MiniLM's pretrained weights and a head of embedded chapter names, chosen by a
    finished run.

    It has predictions for 1,997 real test rows. Nothing is trained.
    """
    assert stack.s3_endpoint
    icd10.write(DATA)
    recipe = Recipe.model_validate(
        {
            "name": "engines",
            "base_model": BASE_MODEL,
            "data": {
                **{name: f"{DATA}/{name}" for name in ("train", "validation", "test")},
                "label": "chapter",
            },
            "evaluation": {"gates": dict.fromkeys(GATES)},
            "registry": REGISTRY,
        }
    )
    test = read_test(recipe.data)
    base = base_model.stage_base_model(parse_model_uri(BASE_MODEL), registry=REGISTRY).uri
    classes = labels_of(test.labels)
    names = nn.functional.normalize(torch.from_numpy(embeddings(base, classes)))
    version = register_head(
        TASK_URI,
        tmp_path_factory.mktemp("evaluated") / "version",
        base=base,
        head={"weight": 20 * names, "bias": torch.zeros(len(classes))},
        kind="full",
        classes=classes,
        # int8 is much faster than float32; the gain over bfloat16 may be lost in noise
        dtype="float32",
    )
    _conclude(recipe, version, predict_rows(version.uri, rows=test), test_sha256=rows_sha256(test))
    return version


def _conclude(
    recipe: Recipe, version: versions.ModelVersion, answers: Predictions, *, test_sha256: str
) -> None:
    run = f"{TASK_URI}/runs/r"
    save_predictions(f"{run}/predictions/candidate.parquet", answers)
    # not a baseline, which would be served next to the candidate
    absent = CandidateRecord("full", f"{TASK_URI}/versions/none", "0" * 64)
    data = DataRecord(report_of(Simulation()), trained_on=0, sha256={"test": test_sha256})
    write_finished_run(
        run,
        versions={"candidate": candidate_record(version), "incumbent": absent},
        recipe=recipe,
        protocol=build_protocol(
            recipe.evaluation,
            serving=recipe.serving,
            test_sha256=test_sha256,
            num_test_rows=len(answers),
        ),
        data=data,
    )


def _evidence() -> Evidence:
    return read_evidence(f"{TASK_URI}/runs/r")


def _classify(url: str, texts: list[str]) -> dict[str, Any]:
    answer = requests.post(f"{url}/v1/classify", json={"input": texts}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.long
def test_int8_is_accepted_promoted_served_as_evaluated_and_rolled_back(
    evaluated: versions.ModelVersion,
) -> None:
    recorder = ProgressRecorder()
    with connect():
        champion = promote_version(TASK_URI, engine="onnxruntime-int8", progress=recorder)
    version = versions.read_version(champion.uri)
    assert (version.engine, version.exported_from) == (
        "onnxruntime-int8",
        versions.PinnedVersion(uri=evaluated.uri, digest=evaluated.digest),
    )
    assert (
        champion.reason.sentence()
        == "FINE_TUNE: candidate dominates the incumbent; run by onnxruntime-int8 "
        f"({ENGINE_EVIDENCE})"
    )
    assert champion.parity is None  # no version is served yet
    result = EngineEvidence.model_validate(
        storage.read_json(f"{version.uri}/{ENGINE_EVIDENCE}")
    ).equivalence
    assert result.accepted
    assert result.cost_ratio[2] < 0.9
    assert result.interval[0] > -0.01
    assert 0 < result.num_different < 0.1 * result.n  # nearly the same predictions
    assert any(
        "accepted: the exported model uses 0." in event.text
        for event in recorder.of_kind(NoteEvent)
    )
    assert verify_evidence(version.uri) == ()

    recipe = _evidence().recipe
    try:
        url, served = serve_champion(recipe.serving, task_uri=TASK_URI)
        assert served == version
        stored = champion_module.read_champion(TASK_URI)
        assert stored is not None
        assert stored[0].parity is not None
        assert stored[0].parity.matching == stored[0].parity.rows == 64
        rows, answers = (
            read_test(recipe.data),
            load_predictions(f"{version.uri}/predictions/candidate.parquet"),
        )
        response = _classify(url, list(rows.texts[:32]))
        assert response["version"] == version.version
        same = [
            result["label"] == label
            for result, label in zip(response["results"], answers.outputs[:32], strict=True)
        ]
        assert (
            sum(same) >= 31
        )  # int8 products are scaled by batch, which may change a close prediction

        assert (
            promote_version(TASK_URI) == stored[0]
        )  # the weights are already served, and their engine is kept
        back = promote_version(TASK_URI, engine="torch")
        assert (back.uri, back.reason.sentence()) == (
            evaluated.uri,
            f"another engine for the weights of {version.version}",
        )
        assert (back.run, back.parity is not None) == (champion.run, True)
        assert _classify(url, ["Cholera"])["version"] == evaluated.version
        again = roll_back(TASK_URI, reason="int8 was faster")
        assert again.uri == version.uri
        assert _classify(url, ["Cholera"])["version"] == version.version
        with pytest.raises(PromotionRefused, match=r"was rolled back; .* --override REASON"):
            promote_version(TASK_URI, engine="torch")
        assert promote_version(TASK_URI) == again
    finally:
        rollout.undeploy("engines")


@pytest.mark.long
def test_a_changed_record_an_unknown_engine_and_changed_rows_are_rejected(
    evaluated: versions.ModelVersion,
) -> None:
    evidence = _evidence()
    export = partial(version_for_engine, evaluated, task_uri=TASK_URI, progress=SILENT)
    with connect():
        version = export(evidence=evidence, engine="onnxruntime-int8")
        with pytest.raises(EngineError, match="unknown engine 'tensorrt'; choose torch or onnx"):
            export(evidence=evidence, engine="tensorrt")
        other_rows = replace(evidence.data, sha256={"test": "0" * 64})
        with pytest.raises(DataError, match="test rows changed"):
            export(
                evidence=evidence.model_copy(update={"data": other_rows}),
                engine="onnxruntime-int8",
            )
    kept = storage.read_bytes(f"{version.uri}/{ENGINE_EVIDENCE}")
    record = json.loads(kept)
    record["equivalence"]["gain"] += 0.01
    storage.write_json(f"{version.uri}/{ENGINE_EVIDENCE}", record)
    faults = verify_evidence(version.uri)
    assert any("engine_evidence.json was changed" in fault for fault in faults)
    assert any(fault.startswith("equivalence.gain is") for fault in faults)
    storage.write_bytes(f"{version.uri}/{ENGINE_EVIDENCE}", kept)
    assert verify_evidence(version.uri) == ()
