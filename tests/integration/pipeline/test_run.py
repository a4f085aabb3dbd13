"""A small recipe from Parquet on S3 to HTTP answers: the outputs of all parts agree."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from cluster import connection
from cluster.progress import SILENT, EpochEvent
from serving.deploy.application import application_name
from serving.deploy.rollout import deploy, undeploy
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.data.loader import read_rows
from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.report.evidence import FAMILY_FILE
from tailorbird.evaluation.report.evidence_files import MANIFEST, load_all_predictions
from tailorbird.evaluation.report.preregistration import PROTOCOL_FILE, Preregistration
from tailorbird.evaluation.trained_rows import trained_rows
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.models.classifier import logits_rows
from tailorbird.models.loading import LoadedClassifier
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.evaluate import RunResult, publish
from tailorbird.pipeline.prepare import RunContext, prepare
from tailorbird.pipeline.record import EvaluatedModels, FineTuning, TrainedModels
from tailorbird.pipeline.run import run_pipeline, run_sweep
from tailorbird.registry.champion import read_champion
from tailorbird.registry.run_progress import RunProgress
from tailorbird.registry.versions import list_versions, read_version
from tailorbird.release.export import export_version
from tailorbird.release.parity import ParityRefused
from tailorbird.release.promotion import promote_version
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.paths import parse_run_uri
from tests.finished_runs import prediction_table_names
from tests.integration.small import ROOT, SmallRun, stages, written
from tests.loaded import load_model
from tests.notebook import execute
from tests.progress import ProgressRecorder
from tests.unit.pipeline.contexts import registering
from tests.unit.release.loaded_folders import logits_of

pytestmark = pytest.mark.usefixtures("connected")

ROLES = ("incumbent", "candidate")
EACH = 8  # of the test rows that are sent to a service
KINDS = {"majority", "zero_shot", "centroid", "bag_of_words", "probe", "probe_bag"}


@pytest.fixture(scope="module")
def champion_url(small_run: SmallRun) -> Iterator[str]:
    """Address of the run's winner, promoted and served."""
    task_uri = small_run.recipe.task_uri
    champion = promote_version(task_uri)
    version = read_version(champion.uri)
    yield deploy(small_run.recipe.serving, task_uri=task_uri, version=version)
    undeploy(application_name(task_uri))


def rows_of_test(small_run: SmallRun) -> Rows:
    return read_rows(small_run.recipe.data.test or "", config=small_run.recipe.data)


def predictions(run: str) -> dict[str, Predictions]:
    return {role: load_predictions(f"{run}/predictions/{role}.parquet") for role in ROLES}


def test_the_verdict_is_recomputed_from_the_stored_predictions_and_protocol(
    small_run: SmallRun,
) -> None:
    run = small_run.result.run
    registered = Preregistration.model_validate_json(storage.read_bytes(f"{run}/{PROTOCOL_FILE}"))
    inputs = small_run.result.evidence.verdict_inputs(load_all_predictions(run))
    assert inputs.test_sha256 == registered.data["test"]
    again = reach_verdict(inputs, protocol=registered.protocol)
    assert again == small_run.result.verdict
    assert {gate.name for gate in again.gates} == {
        "calibration",
        "groups",
        "counterfactual",
        "robustness",
    }
    assert again.n == len(rows_of_test(small_run)) == 400


def test_stored_predictions_have_the_order_of_the_test_rows_and_no_texts(
    small_run: SmallRun,
) -> None:
    rows = rows_of_test(small_run)
    for table in predictions(small_run.result.run).values():
        assert (table.row_ids, table.labels) == (rows.row_ids, rows.labels)
        assert table.groups["group"] == rows.groups["group"]
        assert not set(table.to_table().column_names) & {"text"}


def test_the_run_writes_evidence_report_model_card_and_protocol(small_run: SmallRun) -> None:
    run = small_run.result.run
    names = {uri.removeprefix(f"{run}/") for uri in storage.list_files(run)}
    roles = [model.role for model in small_run.result.evidence.family.models]
    expected = prediction_table_names(roles, changed=small_run.recipe.evaluation.gates.changed_sets)
    tables = {f"predictions/{name}.parquet" for name in expected}
    assert (
        names
        == {PROTOCOL_FILE, FAMILY_FILE, "evidence.json", "report.html", "MODEL_CARD.md", MANIFEST}
        | tables
    )
    evidence = storage.read_json(f"{run}/evidence.json")
    assert (evidence["format"], evidence["verdict"]["n"]) == (1, small_run.result.verdict.n)
    evidence = small_run.result.evidence
    assert evidence.data.report.num_train >= 300
    assert {score.kind for score in evidence.scores} >= KINDS


def test_the_winner_is_registered_with_its_evidence(small_run: SmallRun) -> None:
    winner = read_version(small_run.result.winner)
    assert winner.uri in {version.uri for version in list_versions(small_run.recipe.task_uri)[0]}
    manifest = storage.read_json(f"{winner.uri}/manifest.json")
    for name, entry in manifest.items():
        assert storage.sha256_file(local_copy(winner.uri) / name) == entry["sha256"]
    for name in (
        "evidence.json",
        "report.html",
        "MODEL_CARD.md",
        *(f"predictions/{role}.parquet" for role in ROLES),
    ):
        assert storage.exists(f"{winner.uri}/{name}")
    role = small_run.result.verdict.selected
    assert small_run.result.evidence.versions[role].digest == winner.digest
    loaded = load_model(winner.uri, LoadedClassifier)
    context = prepare(small_run.recipe, progress=SILENT)
    assert loaded.classes == context.task.classes
    train = context.splits.train
    assert trained_rows(train, {"winner": winner}).rows == {"winner": train.row_ids}


def test_a_second_run_reuses_the_first_and_writes_no_stage_again(small_run: SmallRun) -> None:
    before = written(small_run.recipe.task_uri), stages(small_run.recipe.task_uri)
    recorder = ProgressRecorder()
    with connection.connect():
        again = run_pipeline(small_run.recipe, progress=recorder)
    assert (again.run, again.verdict, again.winner) == (
        small_run.result.run,
        small_run.result.verdict,
        small_run.result.winner,
    )
    assert (written(small_run.recipe.task_uri), stages(small_run.recipe.task_uri)) == before
    assert recorder.of_kind(EpochEvent) == []


def test_the_promoted_winner_serves_the_stored_predictions(
    small_run: SmallRun, champion_url: str
) -> None:
    entry = read_champion(small_run.recipe.task_uri)
    assert entry is not None
    assert entry[0].uri == small_run.result.winner
    role = small_run.result.verdict.selected
    stored = load_all_predictions(small_run.result.run)[role]
    results = answers_as_evaluated(small_run, stored, url=champion_url)["results"]
    scores = [result["score"] for result in results]
    assert scores == pytest.approx(stored.calibrated[::EACH].tolist(), abs=0.02)


def answers_as_evaluated(small_run: SmallRun, stored: Predictions, *, url: str) -> dict[str, Any]:
    """Return the answer to some test rows, whose labels must be those of the stored predictions."""
    body = {"input": rows_of_test(small_run).texts[::EACH]}
    answer = requests.post(f"{url}/v1/classify", json=body, timeout=60).json()
    labels = [result["label"] for result in answer["results"]]
    same = [label == output for label, output in zip(labels, stored.outputs[::EACH], strict=True)]
    assert sum(same) >= len(same) - 1  # in bf16, another batch may change a tie
    return dict(answer)


def test_the_notebook_compares_loads_and_queries_the_models_of_the_run(
    small_run: SmallRun, champion_url: str
) -> None:
    values = execute(
        ROOT / "docs" / "notebook.ipynb",
        parameters={"RECIPE": small_run.recipe, "URL": champion_url},
    )
    assert values["run-code"].evidence == small_run.result.evidence
    assert values["compare-code"].gain == pytest.approx(
        small_run.result.verdict.relation("candidate", "incumbent").gain
    )
    assert values["client"]["version"] == read_version(small_run.result.winner).version
    assert values["same"] is True


def check_export(uri: str, *, card: str, folder: Path) -> None:
    """Check that the exported classifier has the logits of the registered one, without its bag of
    words."""
    loaded, text = load_model(uri, LoadedClassifier), "fear of flying"
    assert loaded.model is not None
    assert loaded.tokenizer is not None
    exported = export_version(uri, folder / "model", encoder_only=loaded.bag is not None)
    assert exported.library == "sentence-transformers"
    assert card in (folder / "model" / "README.md").read_text()
    tokens = loaded.tokenizer([text], truncation=True, max_length=loaded.max_length)["input_ids"]
    expected = logits_rows(loaded.model, tokens, pad_id=0)[0] / loaded.version.temperature
    logits = logits_of({"model": ("classifier", folder / "model", text)}, folder=folder)["model"]
    tolerance = 1e-4 if loaded.version.dtype == "float32" else 0.1  # the export has fp32
    np.testing.assert_allclose(logits, expected, atol=tolerance)


def test_a_winning_candidate_is_registered_promoted_and_served(
    small_run: SmallRun, champion_url: str, tmp_path: Path
) -> None:
    context = prepare(small_run.recipe, progress=SILENT)
    serving = read_champion(small_run.recipe.task_uri)
    assert serving is not None
    won = f"{small_run.recipe.task_uri}/runs/won"
    context = registering(replace(context, run=won), champion=serving[0].uri)
    with connection.connect():
        trained = trained_models(small_run, incumbent=small_run.result.winner)
    result = publish(context, trained, evaluated_models(small_run), won_verdict(context, small_run))
    check_parity_gate(small_run, result, url=champion_url)
    champion = promote_version(small_run.recipe.task_uri, version=result.winner)
    version = read_version(champion.uri)
    assert (version.kind, champion.uri) == (
        result.evidence.versions["candidate"].kind,
        result.winner,
    )
    assert "FINE_TUNE: candidate dominates the incumbent" in champion.reason.sentence()
    check_export(version.uri, card=result.verdict.sentence(), folder=tmp_path)
    assert champion.parity is not None
    assert (champion.parity.rows, champion.parity.matching) == (64, 64)
    assert champion.baseline is not None
    incumbent = read_version(result.evidence.versions["incumbent"].uri)
    pretrained = ("baseline", incumbent.digest)
    assert champion.baseline.digest == incumbent.digest
    assert served_at(champion_url) == [("champion", champion.digest), pretrained]
    url = deploy(small_run.recipe.serving, task_uri=small_run.recipe.task_uri, version=version)
    assert url == champion_url
    stored = predictions(small_run.result.run)["candidate"]
    assert answers_as_evaluated(small_run, stored, url=url)["version"] == version.version


def trained_models(small_run: SmallRun, *, incumbent: str) -> TrainedModels:
    """Return the models of the small run, from its stages, with a version as the best baseline."""
    evidence, context = small_run.result.evidence, prepare(small_run.recipe, progress=SILENT)
    baselines = context.task.fit_baselines()
    sweep_result = run_sweep(context, baselines)
    kind = evidence.versions["incumbent"].kind
    baselines = (Baseline(kind, incumbent, 1.0, True, ""), *baselines)
    candidate = Contender(
        evidence.versions["candidate"].kind, evidence.versions["candidate"].uri, 0.5
    )
    return TrainedModels(
        baselines, FineTuning(sweep_result, (sweep_result.trained,), None, None, candidate)
    )


def evaluated_models(small_run: SmallRun) -> EvaluatedModels:
    """Return the small run's results on test."""
    evidence = small_run.result.evidence
    return EvaluatedModels(
        family=evidence.family,
        test_access=evidence.test_access,
        predictions=load_all_predictions(small_run.result.run),
        cost=evidence.cost,
        endpoint_answers={},
    )


def check_parity_gate(small_run: SmallRun, result: RunResult, *, url: str) -> None:
    """Replace the candidate's predictions; check that its promotion is refused and the previous
    champion is served."""
    before, serves = read_champion(small_run.recipe.task_uri), served_at(url)
    uri = f"{result.run}/predictions/candidate.parquet"
    content = storage.read_bytes(uri)
    save_predictions(uri, load_all_predictions(result.run)["incumbent"])
    try:
        with pytest.raises(
            ParityRefused,
            match=r"answers \d+ of 64 test rows differently .*\n  row \d+, .*: evaluated .*, served",
        ):
            promote_version(small_run.recipe.task_uri, version=result.winner)
    finally:
        storage.write_bytes(uri, content)
    assert read_champion(small_run.recipe.task_uri) == before
    assert (
        requests.post(f"{url}/v1/classify", json={"input": "Cholera"}, timeout=60).status_code
        == 200
    )
    assert served_at(url) == serves


def served_at(url: str) -> list[tuple[str, str]]:
    models = requests.get(f"{url}/v1/models", timeout=60).json()["data"]
    return [(model["id"], model["digest"]) for model in models]


def test_a_changed_byte_invalidates_a_stored_verdict(small_run: SmallRun) -> None:
    assert verify_evidence(small_run.result.run) == ()
    assert verify_evidence(small_run.result.winner) == ()
    uri = f"{small_run.result.run}/predictions/candidate_noise.parquet"
    content = storage.read_bytes(uri)
    try:
        storage.write_bytes(uri, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert (
            "predictions/candidate_noise.parquet was changed"
            in verify_evidence(small_run.result.run)[0]
        )
    finally:
        storage.write_bytes(uri, content)


def won_verdict(context: RunContext, small_run: SmallRun) -> Verdict:
    """Return the verdict for a candidate that is right on every row."""
    tables = load_all_predictions(small_run.result.run)
    right = tables["candidate"]
    sure = np.ones(len(right))
    perfect = replace(right, outputs=right.labels, scores=sure, confidences=sure, calibrated=sure)
    sha256 = context.inputs.data.hashes["test"]
    models = {
        "incumbent": ModelPredictions(tables["incumbent"]),
        "candidate": ModelPredictions(perfect),
    }
    inputs = VerdictInputs(models, test_sha256=sha256)
    return reach_verdict(inputs, protocol=context.protocol.model_copy(update={"gates": NO_GATES}))


def test_the_progress_of_the_run_is_stored_with_its_learning_curves(small_run: SmallRun) -> None:
    paths, name = parse_run_uri(small_run.result.run)
    record = RunProgress.model_validate_json(storage.read_bytes(paths.progress(name)))
    assert (record.run, record.status, record.error) == (small_run.result.run, "finished", None)
    assert record.validation_rows == small_run.result.evidence.data.report.num_validation
    assert {"baselines", "sweep", "test"} <= {
        stage.name for stage in record.stages if stage.seconds is not None
    }
    scores = {contender.name: contender.score for contender in record.contenders}
    trained = [contender for contender in record.contenders if contender.curve]
    assert scores["bag_of_words"] is not None
    assert trained
    assert all(contender.curve[-1][1] == contender.score for contender in trained)
