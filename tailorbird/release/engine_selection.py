"""Which engine serves the weights that a verdict chose: the cheapest that answers as well, by evidence of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.code_snapshot import ship_code
from cluster.progress import ProgressReporter
from cluster.remote import note_shortage, run_remote
from cluster.resources import worker_resources
from tailorbird import PROJECT_ROOT, storage
from tailorbird.data.loader import read_test
from tailorbird.data.rows import DataError, Rows, rows_sha256
from tailorbird.evaluation.inference.cpu_time import measure_cpu
from tailorbird.evaluation.inference.perturbations import add_typos, swap_demographics
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.report.engine_evidence import ENGINE_EVIDENCE, EngineEvidence
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.evidence_files import MANIFEST, write_evidence
from tailorbird.evaluation.report.run_record import CodeRecord
from tailorbird.evaluation.verdict.inputs import VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.runtime_equivalence import Equivalence, evaluate_equivalence
from tailorbird.models.export import TARGETS, export_version
from tailorbird.models.runtimes import EngineError
from tailorbird.registry.versions import ModelVersion, PinnedVersion, now, register
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.stage_cache import cached_stage

JUDGED = "torch"
"""The engine that every verdict is about."""
AUTO = "auto"
NUM_COST_ROWS = 256


@dataclass(frozen=True)
class ExportedModel:
    """An artifact for another engine, and its evidence."""

    uri: str
    evidence: EngineEvidence


def choose_engine(
    judged: ModelVersion, *, evidence: Evidence, engine: str, task_uri: str, progress: ProgressReporter
) -> ModelVersion:
    """The version to promote in the judged one's place: of one engine, or with `auto` the cheapest that is accepted,
    which may be the judged version itself.

    Exports, predicts the test rows and measures on the connected Ray; what was found once is found again. Raises
    EngineError for an engine that is not accepted or cannot be tried, DataError where the test rows changed.
    """
    if engine == JUDGED:
        return judged
    if engine not in (AUTO, *TARGETS):
        raise EngineError(f"no engine {engine!r}; there are {', '.join((AUTO, JUDGED, *TARGETS))}")
    why_not = _only_torch(judged, evidence=evidence)
    if why_not and engine != AUTO:
        raise EngineError(f"{judged.version} {why_not}; leave --engine out")
    if why_not:
        progress.stage(f"engine: torch, as judged; {judged.version} {why_not}")
        return judged
    trial = _Trial(judged, evidence=evidence, task_uri=task_uri, progress=progress)
    tried = []
    for name in TARGETS if engine == AUTO else (engine,):
        try:
            tried.append(trial.of(name))
        except EngineError as error:
            if engine != AUTO:
                raise
            progress.note(f"{name}: not tried, {error}")
    accepted = [exported for exported in tried if exported.evidence.equivalence.accepted]
    if engine != AUTO and not accepted:
        raise EngineError(
            f"{engine} is not accepted for {judged.version}: {'; '.join(tried[0].evidence.equivalence.reasons)}; the "
            f"record is {tried[0].uri}/{ENGINE_EVIDENCE}"
        )
    if not accepted:
        progress.stage("engine: torch, as judged; no other is accepted")
        return judged
    best = min(accepted, key=lambda exported: exported.evidence.equivalence.cost_ratio[0])
    progress.stage(f"engine: {best.evidence.engine}")
    return _registered(best, task_uri=task_uri)


def _only_torch(judged: ModelVersion, *, evidence: Evidence) -> str | None:
    """Why there is no other engine for it; None where there may be."""
    if judged.task == "chat" or judged.hybrid:
        return f"is a {'chat model' if judged.task == 'chat' else 'hybrid'}, which torch alone runs here"
    if evidence.recipe.serving.gpus_per_replica:
        return "is served on a GPU (serving.gpus_per_replica), where the engines for CPU have no place"
    return None


class _Trial:
    """A judged version, its answers to the test rows, and what other engines make of it."""

    def __init__(self, judged: ModelVersion, *, evidence: Evidence, task_uri: str, progress: ProgressReporter) -> None:
        self._judged, self._evidence, self._home, self._progress = judged, evidence, task_uri, progress
        self._recipe = evidence.recipe
        self._on_cpu = self._recipe.training.model_copy(update={"gpus_per_worker": 0})
        self._protocol = evidence.protocol
        self._code = ship_code(task_uri, PROJECT_ROOT)
        self._role = next(role for role, record in evidence.versions.items() if record.uri == judged.uri)
        self._test = read_test(self._recipe.data)
        if rows_sha256(self._test) != evidence.data.sha256["test"]:
            raise DataError(
                f"the test rows changed since {judged.version} was evaluated on them, so no engine can be compared "
                "with it; restore them, or run the recipe again"
            )

    def of(self, engine: str) -> ExportedModel:
        """The engine's artifact and record, found again or made now."""

        def compute(uri: str) -> ExportedModel:
            self._progress.stage(f"engine {engine}: export, answers to the test rows, cost")
            note_shortage(self._on_cpu.cpus_per_worker, what="it", progress=self._progress)
            export = run_remote(export_version, resources=worker_resources(self._on_cpu))
            export(self._judged.uri, target=engine, code=self._code.uri, to=f"{uri}/model")
            return self._evaluate(engine, uri)

        inputs = {
            "engine": engine,
            "judged": self._judged.digest,
            "test": self._evidence.data.sha256["test"],
            "protocol": self._protocol.model_dump(mode="json"),
            "code": self._code.sha256,
        }
        exported = cached_stage(self._home, "engine", output=ExportedModel, inputs=inputs, compute=compute)
        self._progress.note(f"{engine}: {_line(exported.evidence.equivalence)}")
        return exported

    def _evaluate(self, engine: str, uri: str) -> ExportedModel:
        """Compare the artifact's predictions and cost with the judged version's; store the evidence under `uri`."""
        predict = run_remote(predict_rows, resources=worker_resources(self._on_cpu))
        tables = self._judged_tables() | {
            f"candidate{suffix}": predict(f"{uri}/model", rows=rows) for suffix, rows in self._sets()
        }
        few = self._test.take(range(min(len(self._test), NUM_COST_ROWS)))
        uris = {"incumbent": self._judged.uri, "candidate": f"{uri}/model"}
        rounds = run_remote(measure_cpu, resources=worker_resources(self._on_cpu))(uris, rows=few)
        judged, exported = model_predictions("incumbent", tables), model_predictions("candidate", tables)
        inputs = VerdictInputs(judged, exported, tables.get("reference"), self._protocol.test_sha256, cpu=rounds)
        try:
            equivalence = evaluate_equivalence(inputs, protocol=self._protocol)
        except VerdictRefused as error:  # scores that are no numbers, of an engine that cannot run this model
            raise EngineError(f"its answers cannot be compared: {error}") from None
        evidence = EngineEvidence(
            engine=engine,
            equivalence=equivalence,
            evaluated=PinnedVersion(uri=self._judged.uri, digest=self._judged.digest),
            run=self._evidence.run,
            protocol=self._protocol,
            cpu=rounds,
            code=CodeRecord(self._code.sha256, self._code.uri),
            created_at=now(),
        )
        for name, table in tables.items():
            save_predictions(f"{uri}/predictions/{name}.parquet", table)
        storage.write_bytes(f"{uri}/{ENGINE_EVIDENCE}", evidence.model_dump_json(indent=1).encode())
        return ExportedModel(uri, evidence)

    def _sets(self) -> Iterator[tuple[str, Rows]]:
        """The test rows, and the changed ones that the gates ask for, by what follows a role in the tables' names."""
        yield "", self._test
        gates = self._protocol.gates
        if gates.counterfactual is not None:
            yield "_counterfactual", swap_demographics(self._test)
        if gates.robustness is not None:
            yield "_noise", add_typos(self._test)

    def _judged_tables(self) -> dict[str, Predictions]:
        """The judged version's answers as the run keeps them, in the incumbent's place, and the reference's."""
        kept = f"{self._evidence.run}/predictions"
        names = {f"incumbent{suffix}": f"{self._role}{suffix}" for suffix, _ in self._sets()}
        names |= {"reference": "reference"} if self._protocol.has_reference else {}
        return {ours: load_predictions(f"{kept}/{theirs}.parquet") for ours, theirs in names.items()}


def _registered(exported: ExportedModel, *, task_uri: str) -> ModelVersion:
    """The artifact as a version, its record and tables beside it."""
    version = register(task_uri, local_copy(f"{exported.uri}/model"))
    if not storage.exists(f"{version.uri}/{MANIFEST}"):
        files = [f"predictions/{uri.rpartition('/')[2]}" for uri in storage.list_files(f"{exported.uri}/predictions")]
        write_evidence(
            version.uri, {name: storage.read_bytes(f"{exported.uri}/{name}") for name in (ENGINE_EVIDENCE, *files)}
        )
    return version


def _line(equivalence: Equivalence) -> str:
    """Return whether the engine is accepted, and why."""
    different = f"{equivalence.num_different} of {equivalence.n:,} answers differ"
    accepted = "accepted" if equivalence.accepted else "not accepted"
    return f"{accepted}: {'; '.join((*equivalence.reasons, different))}"
