"""Export a version for ONNX Runtime, if its predictions are equivalent to the evaluated ones; store
the evidence."""

from dataclasses import dataclass

from cluster.code_snapshot import ship_code
from cluster.progress import ProgressReporter
from cluster.remote import note_shortage, run_remote
from cluster.resources import worker_resources
from tailorbird import PROJECT_ROOT, storage
from tailorbird.data.loader import read_test
from tailorbird.data.rows import DataError, Rows, rows_sha256
from tailorbird.evaluation.inference.perturbations import perturbed_rows
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.serving_cost import measure_serving
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.report.evidence import ENGINE_EVIDENCE, EngineEvidence, Evidence
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
    exported = _Export(evaluated, evidence=evidence, task_uri=task_uri, progress=progress).create()
    equivalence = exported.evidence.equivalence
    if not equivalence.accepted:
        raise EngineError(
            f"{engine} is not accepted for {evaluated.version}: {'; '.join(equivalence.reasons)}; "
            f"see {exported.uri}/{ENGINE_EVIDENCE}"
        )
    return _register(exported, task_uri=task_uri)


def _why_only_torch(version: ModelVersion, *, evidence: Evidence) -> str | None:
    """Return why only torch can run the version; None if another engine may."""
    if version.endpoint is not None:
        return "is answered by an endpoint, so no engine runs it here"
    if version.task == "chat" or version.hybrid:
        return (
            f"is a {'chat model' if version.task == 'chat' else 'hybrid'}, which only torch "
            "supports"
        )
    if not version.spec.uses_base:
        return f"is a {version.kind} model, which has no encoder"
    if evidence.recipe.serving.gpus_per_replica:
        return "is served on a GPU (serving.gpus_per_replica), which only torch supports"
    return None


class _Export:
    """The export of an evaluated version, compared with it by predictions and cost."""

    def __init__(
        self,
        evaluated: ModelVersion,
        *,
        evidence: Evidence,
        task_uri: str,
        progress: ProgressReporter,
    ) -> None:
        self._evaluated = evaluated
        self._evidence = evidence
        self._protocol = evidence.protocol
        self._task_uri = task_uri
        self._progress = progress
        self._resources = worker_resources(
            evidence.recipe.training.model_copy(update={"gpus_per_worker": 0})
        )
        self._code = ship_code(task_uri, PROJECT_ROOT)
        self._role = next(
            role for role, record in evidence.versions.items() if record.uri == evaluated.uri
        )
        self._test = read_test(evidence.recipe.data)
        if rows_sha256(self._test) != evidence.data.sha256["test"]:
            raise DataError(
                f"the test rows changed after {evaluated.version} was evaluated on them, so no "
                "engine can be compared with it; restore them, or run the recipe again"
            )

    def create(self) -> ExportedModel:
        """Return the exported model with its evidence; cached."""

        def compute(uri: str) -> ExportedModel:
            self._progress.stage(f"engine {INT8}: export, test predictions, cost")
            note_shortage(
                self._evidence.recipe.training.cpus_per_worker, what="it", progress=self._progress
            )
            export = run_remote(export_int8, resources=self._resources)
            export(self._evaluated.uri, code=self._code.uri, to=f"{uri}/model")
            return self._evaluate(uri)

        inputs = {
            "evaluated": self._evaluated.digest,
            "test": self._evidence.data.sha256["test"],
            "protocol": self._protocol.model_dump(mode="json"),
            "code": self._code.sha256,
        }
        exported = cached_stage(
            self._task_uri, "engine", output=ExportedModel, inputs=inputs, compute=compute
        )
        equivalence = exported.evidence.equivalence
        accepted = "accepted" if equivalence.accepted else "not accepted"
        different = f"{equivalence.num_different} of {equivalence.n:,} predictions differ"
        self._progress.note(f"{INT8}: {accepted}: {'; '.join((*equivalence.reasons, different))}")
        return exported

    def _evaluate(self, uri: str) -> ExportedModel:
        """Compare predictions and cost with the evaluated version; store the evidence under
        `uri`."""
        predict = run_remote(predict_rows, resources=self._resources)
        tables = self._evaluated_tables() | {
            f"candidate{suffix}": predict(f"{uri}/model", rows=rows)
            for suffix, rows in self._row_sets().items()
        }
        cost_rows = self._test.take(range(min(len(self._test), NUM_COST_ROWS)))
        uris = {"incumbent": self._evaluated.uri, "candidate": f"{uri}/model"}
        batch_size = self._evidence.recipe.serving.batch_size("classification")
        measure = run_remote(measure_serving, resources=self._resources)
        measured = measure(uris, rows=cost_rows, batch_size=batch_size)
        evaluated = model_predictions("incumbent", tables)
        exported = model_predictions("candidate", tables)
        inputs = VerdictInputs(
            {"incumbent": evaluated, "candidate": exported},
            self._protocol.test_sha256,
            costs=measured.serving,
        )
        try:
            equivalence = evaluate_equivalence(inputs, protocol=self._protocol)
        except VerdictRefused as error:  # scores that are not finite
            raise EngineError(f"its predictions cannot be compared: {error}") from None
        evidence = EngineEvidence(
            engine=INT8,
            equivalence=equivalence,
            evaluated=self._evaluated.pinned,
            run=self._evidence.run,
            protocol=self._protocol,
            serving=measured.serving,
            code=self._code,
            created_at=now(),
        )
        for name, table in tables.items():
            save_predictions(f"{uri}/predictions/{name}.parquet", table)
        storage.write_bytes(f"{uri}/{ENGINE_EVIDENCE}", evidence.model_dump_json(indent=1).encode())
        return ExportedModel(uri, evidence)

    def _row_sets(self) -> dict[str, Rows]:
        """Return the test rows and the perturbed rows that the gates need, by suffix of the table
        names."""
        perturbed = perturbed_rows(self._test, self._protocol.gates)
        return {"": self._test, **{f"_{name}": rows for name, rows in perturbed.items()}}

    def _evaluated_tables(self) -> dict[str, Predictions]:
        """Return the run's predictions of the evaluated version, in the role `incumbent`."""
        folder = f"{self._evidence.run}/predictions"
        names = {f"incumbent{suffix}": f"{self._role}{suffix}" for suffix in self._row_sets()}
        return {
            name: load_predictions(f"{folder}/{source}.parquet") for name, source in names.items()
        }


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
