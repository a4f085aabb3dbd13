"""Which engine serves the weights that a verdict chose: the cheapest that answers as well, by evidence of its own."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from cluster.code_snapshot import ship_code
from cluster.progress import Show
from cluster.remote import note_shortage, remotely
from tailorbird import PROJECT_ROOT, storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.loader import read_test
from tailorbird.data.rows import DataError, Rows, rows_sha256
from tailorbird.evaluation.inference.cpu_time import measure
from tailorbird.evaluation.inference.perturbations import counterfactuals, misspelt
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.report.evidence_files import MANIFEST, model_predictions, write_evidence
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.runtime_equivalence import ENGINE_EVIDENCE, evaluate_equivalence
from tailorbird.models.export import TARGETS, export_version
from tailorbird.models.runtimes import EngineError
from tailorbird.registry.versions import ModelVersion, now, register
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.stage_cache import once

JUDGED = "torch"
"""The engine that every verdict is about."""
AUTO = "auto"
NUM_COST_ROWS = 256


class Tried(NamedTuple):
    """An engine with its artifact and what was found of it."""

    engine: str
    uri: str
    record: dict[str, Any]


def choose_engine(
    judged: ModelVersion, *, evidence: dict[str, Any], engine: str, task_uri: str, show: Show
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
        show({"event": "stage", "text": f"engine: torch, as judged; {judged.version} {why_not}"})
        return judged
    trial = _Trial(judged, evidence=evidence, task_uri=task_uri, show=show)
    tried = []
    for name in TARGETS if engine == AUTO else (engine,):
        try:
            tried.append(trial.of(name))
        except EngineError as error:
            if engine != AUTO:
                raise
            show({"event": "note", "text": f"{name}: not tried, {error}"})
    accepted = [one for one in tried if one.record["accepted"]]
    if engine != AUTO and not accepted:
        raise EngineError(
            f"{engine} is not accepted for {judged.version}: {'; '.join(tried[0].record['found']['reasons'])}; the "
            f"record is {tried[0].uri}/{ENGINE_EVIDENCE}"
        )
    if not accepted:
        show({"event": "stage", "text": "engine: torch, as judged; no other is accepted"})
        return judged
    best = min(accepted, key=lambda one: float(one.record["found"]["cost_ratio"][0]))
    show({"event": "stage", "text": f"engine: {best.engine}"})
    return _registered(best, task_uri=task_uri)


def _only_torch(judged: ModelVersion, *, evidence: dict[str, Any]) -> str | None:
    """Why there is no other engine for it; None where there may be."""
    recipe = Recipe.model_validate(evidence["recipe"])
    if judged.task == "chat" or judged.hybrid:
        return f"is a {'chat model' if judged.task == 'chat' else 'hybrid'}, which torch alone runs here"
    if recipe.serving.gpus_per_replica:
        return "is served on a GPU (serving.gpus_per_replica), where the engines for CPU have no place"
    return None


class _Trial:
    """A judged version, its answers to the test rows, and what other engines make of it."""

    def __init__(self, judged: ModelVersion, *, evidence: dict[str, Any], task_uri: str, show: Show) -> None:
        self._judged, self._evidence, self._home, self._show = judged, evidence, task_uri, show
        self._recipe = Recipe.model_validate(evidence["recipe"])
        self._on_cpu = self._recipe.training.model_copy(update={"gpus_per_worker": 0})
        self._question = TestProtocol.from_dict(evidence["question"])
        self._code = ship_code(task_uri, PROJECT_ROOT)
        self._role = next(role for role, one in evidence["versions"].items() if one["uri"] == judged.uri)
        self._test = read_test(self._recipe.data, chat=False)
        if rows_sha256(self._test) != evidence["data"]["sha256_test"]:
            raise DataError(
                f"the test rows changed since {judged.version} was evaluated on them, so no engine can be compared "
                "with it; restore them, or run the recipe again"
            )

    def of(self, engine: str) -> Tried:
        """The engine's artifact and record, found again or made now."""

        def compute(uri: str) -> dict[str, Any]:
            self._show({"event": "stage", "text": f"engine {engine}: export, answers to the test rows, cost"})
            note_shortage(self._on_cpu.cpus_per_worker, what="it", show=self._show)
            export = remotely(export_version, self._on_cpu)
            export(self._judged.uri, target=engine, code=self._code.uri, to=f"{uri}/model")
            return self._examined(engine, uri)

        inputs = {
            "engine": engine,
            "judged": self._judged.digest,
            "test": self._evidence["data"]["sha256_test"],
            "question": self._question.to_dict(),
            "code": self._code.sha256,
        }
        found = once(self._home, "engine", inputs=inputs, compute=compute)
        record = found["record"]
        self._show({"event": "note", "text": f"{engine}: {_line(record)}"})
        return Tried(engine, found["uri"], record)

    def _examined(self, engine: str, uri: str) -> dict[str, Any]:
        """The artifact's answers and cost beside the judged version's, kept with the record at the stage's URI."""
        tables = self._judged_tables() | {
            f"candidate{suffix}": remotely(predict_rows, self._on_cpu)(f"{uri}/model", rows=rows)
            for suffix, rows in self._sets()
        }
        few = self._test.take(range(min(len(self._test), NUM_COST_ROWS)))
        uris = {"incumbent": self._judged.uri, "candidate": f"{uri}/model"}
        rounds = remotely(measure, self._on_cpu)(uris, rows=few)
        judged, exported = model_predictions("incumbent", tables), model_predictions("candidate", tables)
        case = VerdictInputs(judged, exported, tables.get("reference"), self._question.test_sha256, cpu=rounds)
        try:
            found = evaluate_equivalence(case, question=self._question)
        except VerdictRefused as error:  # scores that are no numbers, of an engine that cannot run this model
            raise EngineError(f"its answers cannot be compared: {error}") from None
        record = {
            "accepted": found.accepted,
            "engine": engine,
            "found": found.to_dict(),
            "judged": {"uri": self._judged.uri, "digest": self._judged.digest},
            "run": self._evidence["run"],
            "question": self._question.to_dict(),
            "measured": {"cpu": {name: list(values) for name, values in asdict(rounds).items()}},
            "code": {"sha256": self._code.sha256, "uri": self._code.uri},
            "created_at": now(),
        }
        for name, table in tables.items():
            save_predictions(f"{uri}/predictions/{name}.parquet", table)
        storage.write_json(f"{uri}/{ENGINE_EVIDENCE}", record)
        return {"uri": uri, "record": record}

    def _sets(self) -> Iterator[tuple[str, Rows]]:
        """The test rows, and the changed ones that the gates ask for, by what follows a role in the tables' names."""
        yield "", self._test
        gates = self._question.gates
        if gates.counterfactual is not None:
            yield "_counterfactual", counterfactuals(self._test)
        if gates.robustness is not None:
            yield "_noise", misspelt(self._test)

    def _judged_tables(self) -> dict[str, Predictions]:
        """The judged version's answers as the run keeps them, in the incumbent's place, and the reference's."""
        kept = f"{self._evidence['run']}/predictions"
        names = {f"incumbent{suffix}": f"{self._role}{suffix}" for suffix, _ in self._sets()}
        names |= {"reference": "reference"} if self._question.has_reference else {}
        return {ours: load_predictions(f"{kept}/{theirs}.parquet") for ours, theirs in names.items()}


def _registered(tried: Tried, *, task_uri: str) -> ModelVersion:
    """The artifact as a version, its record and tables beside it."""
    version = register(task_uri, local_copy(f"{tried.uri}/model"))
    if not storage.exists(f"{version.uri}/{MANIFEST}"):
        files = [f"predictions/{uri.rpartition('/')[2]}" for uri in storage.list_files(f"{tried.uri}/predictions")]
        write_evidence(version.uri, {name: storage.read_bytes(f"{tried.uri}/{name}") for name in (ENGINE_EVIDENCE, *files)})
    return version


def _line(record: dict[str, Any]) -> str:
    """For people: whether it is accepted, and why."""
    found = record["found"]
    told = f"{found['differing']} of {found['n']:,} answers differ"
    return f"{'accepted' if record['accepted'] else 'not accepted'}: {'; '.join((*found['reasons'], told))}"
