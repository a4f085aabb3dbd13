"""A run of a tiny encoder on local folders, from the baselines to the evidence."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.data.fingerprints import load_fingerprints
from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.report.evidence import FrozenAnchor
from tailorbird.evaluation.report.evidence_files import (
    MANIFEST,
    load_all_predictions,
)
from tailorbird.evaluation.verdict.inputs import CHANGED_SETS, TrainedRows
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.pipeline import evaluate, inputs
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.evaluate import RunResult, evaluate_run, find_finished_run
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.record import FineTuning, TrainedModels
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.versions import TRAINING_ROWS, read_artifact_config, read_version
from tests import build, small_encoder
from tests.finished_runs import prediction_table_names
from tests.unit.pipeline.contexts import (
    context_of,
    evaluate_locally,
    recipe_at,
    registering,
    training_result,
)
from tuning.sweep import SweepResult


def rows(name: str, size: int) -> Rows:
    texts = [f"{name} row {index} of the {('cat', 'dog')[index % 2]}" for index in range(size)]
    return build.rows(texts, ["ab"[index % 2] for index in range(size)])


@pytest.fixture(scope="module", autouse=True)
def _on_this_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        evaluate_locally(monkeypatch)
        yield


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    folder = tmp_path_factory.mktemp("registry")
    small_encoder.save(folder / "base")
    splits = Splits(rows("train", 24), rows("validation", 12), rows("test", 40))
    return context_of(recipe_at(folder), splits, base_model=(folder / "base").as_uri())


@pytest.fixture(scope="module")
def baselines(context: RunContext) -> tuple[Baseline, ...]:
    return context.task.fit_baselines()


@pytest.fixture(scope="module")
def trained(baselines: tuple[Baseline, ...]) -> TrainedModels:
    """Results of a training, with the centroid baseline in place of a fine-tuned model."""
    uri = next(baseline.uri for baseline in baselines if baseline.kind == "centroid")
    assert uri is not None
    trained = training_result(uri, 0.5)
    sweep_result = SweepResult(
        base_model="s3://m/base", rows=(), selected=TrainingConfig(), trained=trained
    )
    candidate = Contender("centroid", uri, 0.5)
    return TrainedModels(baselines, FineTuning(sweep_result, (trained,), None, None, candidate))


@pytest.fixture(scope="module")
def result(context: RunContext, trained: TrainedModels) -> RunResult:
    return evaluate_run(context, trained)


def test_artifacts_of_servable_baselines_have_the_reported_validation_score(
    context: RunContext, baselines: tuple[Baseline, ...]
) -> None:
    servable = [baseline for baseline in baselines if baseline.servable]
    kinds = ["bag_of_words", "zero_shot", "centroid", "probe", "probe_bag"]
    assert [baseline.kind for baseline in servable] == kinds
    for baseline in servable:
        table = predict_rows(str(baseline.uri), rows=context.splits.validation)
        assert (table.model, table.scores.mean()) == (baseline.kind, baseline.validation)
        assert read_artifact_config(str(baseline.uri)).code == context.inputs.code.uri


def test_a_run_stores_its_evidence_and_is_then_finished(
    context: RunContext, result: RunResult
) -> None:
    roles = [model.role for model in result.evidence.family.models]
    names = prediction_table_names(roles, changed=CHANGED_SETS)
    files = {uri.removeprefix(f"{context.run}/") for uri in storage.list_files(context.run)}
    tables = {f"predictions/{name}.parquet" for name in names}
    assert (
        files == {"evidence.json", "report.html", "MODEL_CARD.md", "family.json", MANIFEST} | tables
    )
    assert find_finished_run(context) == result
    assert (result.run, result.verdict.n) == (context.run, 40)
    assert result.evidence.expires_at == "2027-01-01T00:00:00+00:00"  # a year after the access
    incumbent = read_version(result.evidence.versions["incumbent"].uri)
    assert incumbent.digest == result.evidence.versions["incumbent"].digest
    assert storage.exists(f"{incumbent.uri}/{MANIFEST}")


def test_a_run_with_incomplete_evidence_is_not_finished(
    context: RunContext, result: RunResult
) -> None:
    uri = f"{context.run}/evidence.json"
    content = storage.read_bytes(uri)
    try:
        storage.write_bytes(uri, content.replace(b'"me"', b'"us"'))
        assert find_finished_run(context) is None
    finally:
        storage.write_bytes(uri, content)
    assert find_finished_run(context) == result
    assert find_finished_run(other_run(context, "other")) is None


def other_run(context: RunContext, name: str) -> RunContext:
    return replace(context, run=f"{context.recipe.task_uri}/runs/{name}")


def test_a_second_evaluation_reuses_predictions_and_cost(
    context: RunContext, trained: TrainedModels, result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in_a_task(monkeypatch)
    assert evaluate_run(context, trained).verdict == result.verdict


def fail_in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "run_remote", lambda *_, **__: pytest.fail("a stage ran again"))


@pytest.mark.usefixtures("result")
def test_rows_that_the_incumbent_was_trained_on_are_predicted_and_not_compared(
    context: RunContext, trained: TrainedModels
) -> None:
    known = TrainedRows({"incumbent": ("0", "1", "2", "3")})
    run = registering(other_run(context, "known"), trained_rows=known)
    evidence = evaluate_run(run, trained).evidence
    assert (evidence.verdict.n, evidence.verdict.num_trained_rows, evidence.trained_rows) == (
        36,
        4,
        known,
    )
    assert len(load_predictions(f"{run.run}/predictions/incumbent.parquet")) == 40
    stored = load_fingerprints(f"{evidence.versions['incumbent'].uri}/{TRAINING_ROWS}")
    assert len(stored) == 24 + 12  # training and validation rows


def test_an_anchor_predicts_the_same_rows_or_the_reason_why_not_is_frozen(
    context: RunContext, trained: TrainedModels, result: RunResult
) -> None:
    uri = result.evidence.versions["incumbent"].uri
    run = registering(other_run(context, "anchored"), anchor=uri)
    evidence = evaluate_run(run, trained).evidence
    assert evidence.family.anchor == FrozenAnchor(uri)
    table = load_predictions(f"{run.run}/predictions/anchor.parquet")
    incumbent = load_predictions(f"{run.run}/predictions/incumbent.parquet")
    assert (table.row_ids, table.outputs) == (incumbent.row_ids, incumbent.outputs)
    tables = load_all_predictions(run.run)
    assert reach_verdict(evidence.verdict_inputs(tables), protocol=run.protocol) == evidence.verdict

    gone = registering(other_run(context, "without"), anchor=f"{uri}-gone")
    frozen = evaluate_run(gone, trained).evidence.family.anchor
    assert frozen is not None
    assert frozen.problem.startswith("it cannot be read: ")
    assert "anchor" not in load_all_predictions(gone.run)


@pytest.mark.usefixtures("result")
def test_a_run_that_is_resumed_with_another_hybrid_is_refused_before_the_test_rows_are_read(
    context: RunContext, trained: TrainedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    hybrid = FrozenHybrid(Routing(by="cascade", threshold=0.5), "incumbent", "candidate", 0.5, 0.3)
    monkeypatch.setattr(evaluate, "fit_hybrid_on_validation", lambda *_: hybrid)
    monkeypatch.setattr(
        evaluate, "record_test_access", lambda *_, **__: pytest.fail("the access was recorded")
    )
    with pytest.raises(
        ValueError, match=r"family.json has another hybrid, anchor or headroom than this run"
    ):
        evaluate_run(context, trained)


def test_a_change_of_unrelated_code_reuses_the_stage(
    context: RunContext,
    baselines: tuple[Baseline, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The code archive differs, but the code that the stage runs does not."""
    code = replace(context.inputs.code, sha256="d" * 64, uri=f"{tmp_path.as_uri()}/d.zip")
    changed = replace(context.inputs, code=code)
    fail_in_a_task(monkeypatch)
    assert replace(context.task, inputs=changed).fit_baselines() == baselines
