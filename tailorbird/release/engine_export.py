"""Export a version for ONNX Runtime, if its predictions are equivalent to the evaluated ones; store
the evidence."""

from dataclasses import dataclass

from cluster.code_snapshot import ship_code
from cluster.progress import ProgressReporter
from cluster.remote import run_remote
from cluster.resources import worker_resources
from tailorbird import PROJECT_ROOT, storage
from tailorbird.data.loader import read_test
from tailorbird.data.rows import DataError, rows_sha256
from tailorbird.evaluation.inference.perturbations import perturbed_rows
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.serving_cost import measure_serving
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.report.evidence import (
    ENGINE_EVIDENCE,
    ROLES,
    EngineEvidence,
    Evidence,
)
from tailorbird.evaluation.report.evidence_files import MANIFEST, write_evidence
from tailorbird.evaluation.verdict.inputs import VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.runtime_equivalence import evaluate_equivalence
from tailorbird.models.export import export_int8
from tailorbird.models.runtimes import EngineError
from tailorbird.registry.versions import ModelVersion, now, register
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.stage_cache import cached_stage

EVALUATED = "torch"  # the engine that all evaluations use
INT8 = "onnxruntime-int8"
NUM_COST_ROWS = 256


@dataclass(frozen=True)
class ExportedModel:
    """An exported model with its evidence."""

    uri: str
    evidence: EngineEvidence


def version_for_engine(
    evaluated: ModelVersion,
    *,
    evidence: Evidence,
    engine: str,
    task_uri: str,
    progress: ProgressReporter,
) -> ModelVersion:
    """Return the version to promote: for `INT8`, an export of the evaluated version that is
    equivalent to it.

    Exports the model, predicts the test rows and measures the cost on the connected Ray cluster.
    The result is cached. Raises EngineError if the engine is unknown, is not equivalent or does not
    support the model, and DataError if the test rows changed.
    """
    if engine == EVALUATED:
        return evaluated
    if engine != INT8:
        raise EngineError(f"unknown engine {engine!r}; choose {EVALUATED} or {INT8}")
    obstacle = _why_only_torch(evaluated, evidence=evidence)
    if obstacle:
        raise EngineError(f"{evaluated.version} {obstacle}; omit --engine")
    exported = _export(evaluated, evidence=evidence, task_uri=task_uri, progress=progress)
    equivalence = exported.evidence.equivalence
    different = f"{equivalence.num_different} of {equivalence.n:,} predictions differ"
    if not equivalence.accepted:
        raise EngineError(
            f"{engine} is not accepted for {evaluated.version}: {'; '.join(equivalence.reasons)}; "
            f"{different}; see {exported.uri}/{ENGINE_EVIDENCE}"
        )
    progress.note(f"{INT8}: accepted: {'; '.join((*equivalence.reasons, different))}")
    return _register(exported, task_uri=task_uri)


def _why_only_torch(version: ModelVersion, *, evidence: Evidence) -> str | None:
    """Return why only torch can run the version; None if another engine may."""
    if version.endpoint is not None:
        return "is answered by an endpoint, so no engine runs it here"
    if version.task == "chat" or version.hybrid:
        return "is a chat model or a hybrid, which only torch supports"
    if not version.spec.uses_base:
        return f"is a {version.kind} model, which has no encoder"
    if evidence.recipe.serving.gpus_per_replica:
        return "is served on a GPU (serving.gpus_per_replica), which only torch supports"
    return None


def _export(
    evaluated: ModelVersion, *, evidence: Evidence, task_uri: str, progress: ProgressReporter
) -> ExportedModel:
    """Return the exported model with its evidence: predictions and cost compared with those of the
    evaluated version; a cached stage."""
    test = read_test(evidence.recipe.data)
    if rows_sha256(test) != evidence.data.sha256["test"]:
        raise DataError(
            f"the test rows changed after {evaluated.version} was evaluated on them, so no engine "
            "can be compared with it; restore them, or run the recipe again"
        )
    training = evidence.recipe.training
    protocol = evidence.protocol
    code = ship_code(task_uri, PROJECT_ROOT)
    resources = worker_resources(training.model_copy(update={"gpus_per_worker": 0}))
    predict = run_remote(predict_rows, resources=resources)
    measure = run_remote(measure_serving, resources=resources)

    def compute(uri: str) -> ExportedModel:
        progress.stage(f"engine {INT8}: export, test predictions, cost")
        model = f"{uri}/model"
        export = run_remote(export_int8, resources=resources)
        export(evaluated.uri, code=code.uri, to=model)
        tables = _evaluated_tables(evaluated, evidence=evidence)
        tables["candidate"] = predict(model, rows=test)
        for name, rows in perturbed_rows(test, protocol.gates).items():
            tables[f"candidate_{name}"] = predict(model, rows=rows)
        measured = measure(
            {"incumbent": evaluated.uri, "candidate": model},
            rows=test.take(range(min(len(test), NUM_COST_ROWS))),
            batch_size=evidence.recipe.serving.batch_size("classification"),
        )
        inputs = VerdictInputs(
            {role: model_predictions(role, tables) for role in ROLES},
            protocol.test_sha256,
            costs=measured.serving,
        )
        try:
            equivalence = evaluate_equivalence(inputs, protocol=protocol)
        except VerdictRefused as error:  # scores that are not finite
            raise EngineError(f"its predictions cannot be compared: {error}") from None
        record = EngineEvidence(
            engine=INT8,
            equivalence=equivalence,
            evaluated=evaluated.pinned,
            run=evidence.run,
            protocol=protocol,
            serving=measured.serving,
            code=code,
            created_at=now(),
        )
        for name, table in tables.items():
            save_predictions(f"{uri}/predictions/{name}.parquet", table)
        storage.write_bytes(f"{uri}/{ENGINE_EVIDENCE}", record.model_dump_json(indent=1).encode())
        return ExportedModel(uri, record)

    stage_inputs = {
        "evaluated": evaluated.digest,
        "test": evidence.data.sha256["test"],
        "protocol": protocol.model_dump(mode="json"),
        "code": code.sha256,
    }
    return cached_stage(
        task_uri, "engine", output=ExportedModel, inputs=stage_inputs, compute=compute
    )


def _evaluated_tables(evaluated: ModelVersion, *, evidence: Evidence) -> dict[str, Predictions]:
    """Return the run's predictions of the evaluated version, in the role `incumbent`."""
    role = next(role for role, record in evidence.versions.items() if record.uri == evaluated.uri)
    tables = {}
    for suffix in ("", *(f"_{name}" for name in evidence.protocol.gates.changed_sets)):
        uri = f"{evidence.run}/predictions/{role}{suffix}.parquet"
        tables[f"incumbent{suffix}"] = load_predictions(uri)
    return tables


def _register(exported: ExportedModel, *, task_uri: str) -> ModelVersion:
    """Register the exported model as a version, with its evidence and predictions."""
    version = register(task_uri, local_copy(f"{exported.uri}/model"))
    if not storage.exists(f"{version.uri}/{MANIFEST}"):
        tables = [
            f"predictions/{uri.rpartition('/')[2]}"
            for uri in storage.list_files(f"{exported.uri}/predictions")
        ]
        files = {
            name: storage.read_bytes(f"{exported.uri}/{name}")
            for name in (ENGINE_EVIDENCE, *tables)
        }
        write_evidence(version.uri, files)
    return version
