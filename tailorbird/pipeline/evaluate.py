"""The run's end: routing frozen on validation, one look at test, the verdict, and its evidence in the registry."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from cluster.progress import Show
from cluster.remote import remotely
from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.data.rows import Rows, content_sha256
from tailorbird.evaluation.baselines.tfidf import predict_reference
from tailorbird.evaluation.hybrid import freeze_hybrid
from tailorbird.evaluation.inference.cpu_time import measure
from tailorbird.evaluation.inference.perturbations import counterfactuals, misspelt
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import UNREGISTERED, assemble, files
from tailorbird.evaluation.report.evidence_files import MANIFEST, ROLES, VALIDATION, case_of, write_evidence
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import CHANGED_SETS
from tailorbird.evaluation.verdict.rules import winner
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pipeline.artifacts import Model, is_hybrid, registered, registered_hybrid
from tailorbird.pipeline.prepare import Prepared, freeze
from tailorbird.registry.test_set_ledger import look, num_other_sets
from tailorbird.registry.versions import ModelVersion, now
from tailorbird.storage.node_cache import sha256_files
from tailorbird.storage.stage_cache import once

NUM_COST_ROWS = 256
"""Test texts on which both models' cost is measured."""
NUM_COST_ANSWERS = 16
"""The same of a chat task, whose answers take a hundred times as long."""


@dataclass(frozen=True)
class Done:
    """A finished run: its verdict, where its evidence lies, and the versions it left in the registry by role."""

    run: str
    verdict: Verdict
    evidence: dict[str, Any]

    @property
    def winner(self) -> str:
        """URI of the version that the verdict chose."""
        return str(self.evidence["versions"][winner(self.verdict.outcome)]["uri"])


def find(prepared: Prepared) -> Done | None:
    """The run as it was concluded, if it was, expired or not: the same rows would only say the same."""
    if not storage.exists(f"{prepared.run}/{MANIFEST}"):
        return None
    content = storage.read_bytes(f"{prepared.run}/evidence.json")
    if hashlib.sha256(content).hexdigest() != storage.read_json(f"{prepared.run}/{MANIFEST}")["evidence.json"]:
        return None  # an interrupted conclusion over an older one: concluded again, from the stages
    evidence = json.loads(content)
    return Done(prepared.run, Verdict.from_dict(evidence["verdict"]), evidence)


def judge(prepared: Prepared, *, models: dict[str, Model], parts: dict[str, Any], show: Show) -> Done:
    """From two models to a verdict with its evidence; `parts` are rungs, sweep, seeds, averaged, curve and
    training_cpu_s."""
    routing = freeze_routing(prepared, models=models)
    test = prepared.splits.test
    show(
        {
            "event": "stage",
            "text": f"test: {models['incumbent'].kind} and {models['candidate'].kind} on the same {len(test)} rows",
        }
    )
    content = content_sha256(test)  # the same rows under other data.groups or split_by are no fresh ones
    others = num_other_sets(prepared.recipe.task_uri, content)
    if others:
        show({"event": "note", "text": f"{others} other sets of test rows were looked at under this recipe's name"})
    looked = look(
        prepared.recipe.task_uri,
        test_sha256=content,
        candidate=models["candidate"].uri,
        question=digest(prepared.question.to_dict()),
        run=prepared.run,
    )
    tables = predict_all(prepared, models=models)
    measured = {"cpu": measure_cost(prepared, models=models), "training_cpu_s": parts["training_cpu_s"]}
    found = {
        "data": data_facts(prepared) | {"other_test_sets_looked_at": others},
        "look": looked.look,
        "ledger": asdict(looked) | {"test_rows": content},
        "routing": routing,
        "measured": measured,
    }
    verdict = decide(case_of(found, tables), question=prepared.question)
    show({"event": "stage", "text": f"verdict: {verdict.sentence()}"})
    return conclude(prepared, verdict, models=models, parts=parts | found | {"tables": tables})


def freeze_routing(prepared: Prepared, *, models: dict[str, Model]) -> dict[str, Any] | None:
    """Who answers what in a hybrid, fixed on validation before test is read; None where there is to be none."""
    config = prepared.question.hybrid
    if config is None or is_hybrid(models["incumbent"]):  # a part may be no hybrid itself
        return None
    answers = {role: _answers(prepared, models[role], set_name=VALIDATION) for role in ROLES}
    routing = freeze_hybrid(config, **answers, metric=prepared.question.metric)
    value = {"routing": asdict(routing) if routing else None}
    frozen: dict[str, Any] | None = freeze(f"{prepared.run}/routing.json", value)["routing"]
    return frozen


def predict_all(prepared: Prepared, *, models: dict[str, Model]) -> dict[str, Predictions]:
    """Both models on test, on validation and on the changed rows that gates ask for, and TF-IDF on the test rows."""
    gates = prepared.question.gates
    asked = dict(zip(CHANGED_SETS, (gates.counterfactual, gates.robustness), strict=True))
    tables = {role: _answers(prepared, models[role], set_name="test") for role in ROLES}
    for name in (VALIDATION, *(name for name, gate in asked.items() if gate is not None)):
        tables |= {f"{role}_{name}": _answers(prepared, models[role], set_name=name) for role in ROLES}
    return tables | {"reference": _reference_answers(prepared)} if prepared.question.has_reference else tables


def measure_cost(prepared: Prepared, *, models: dict[str, Model]) -> dict[str, Any] | None:
    """CPU-seconds a thousand rows of both models, in alternating rounds in one process; None beside a hybrid."""
    if is_hybrid(models["incumbent"]):
        return None
    uris = {role: models[role].uri for role in ROLES}

    def compute(_: str) -> dict[str, Any]:
        num_rows = min(len(prepared.splits.test), NUM_COST_ROWS if prepared.prompting is None else NUM_COST_ANSWERS)
        rows = prepared.splits.test.take(range(num_rows))
        return asdict(remotely(measure, prepared.recipe.training)(uris, rows=rows))

    inputs = prepared.key(models=uris, test=prepared.hashes["test"])
    return dict(once(prepared.recipe.task_uri, "cost", inputs=inputs, compute=compute))


def data_facts(prepared: Prepared) -> dict[str, Any]:
    """What the data gates found, with the sha256 of each split."""
    hashes = {f"sha256_{name}": value for name, value in prepared.hashes.items()}
    return prepared.data.report.to_dict() | {"trained_on": prepared.data.num_train} | hashes


def conclude(prepared: Prepared, verdict: Verdict, *, models: dict[str, Model], parts: dict[str, Any]) -> Done:
    """Registers the incumbent, and candidate and hybrid if they won; evidence goes to the run and to the versions."""
    chosen = winner(verdict.outcome)
    versions = _register(prepared, models=models, winner=chosen, routing=parts["routing"])
    described: dict[str, Any] = {
        role: {"kind": model.kind, "uri": model.uri, "digest": UNREGISTERED, "files": sha256_files(model.uri)}
        for role, model in models.items()
        if role not in versions
    }
    for role, version in versions.items():
        described[role] = {"kind": version.kind, "uri": version.uri, "digest": version.digest}
    tables = parts["tables"]
    for name, table in tables.items():
        save_predictions(f"{prepared.run}/predictions/{name}.parquet", table)
    # From the look on: whoever runs again, and finds the same answers, has learned nothing new of the world.
    expires = datetime.fromisoformat(parts["ledger"]["at"]) + timedelta(days=prepared.question.valid_days)
    evidence = assemble(
        prepared.recipe,
        run=prepared.run,
        question=prepared.question,
        verdict=verdict,
        parts={
            **parts,
            "candidate": models["candidate"].validation,
            "versions": described,
            "champion": prepared.champion,
            "code": {"sha256": prepared.code.sha256, "uri": prepared.code.uri},
            "base_model": {"uri": prepared.base_model, "files": prepared.base_files},
            "asked_by": prepared.asked_by,
            "created_at": now(),
            "expires_at": expires.isoformat(timespec="seconds"),
        },
    )
    stored = {
        f"predictions/{name}.parquet": storage.read_bytes(f"{prepared.run}/predictions/{name}.parquet")
        for name in tables
    }
    frozen = {
        name: storage.read_bytes(f"{prepared.run}/{name}")
        for name in ("question.json", "routing.json")
        if storage.exists(f"{prepared.run}/{name}")
    }
    for role, version in versions.items():
        if not storage.exists(f"{version.uri}/{MANIFEST}"):  # of the run that registered it; later runs keep their own
            write_evidence(version.uri, frozen | stored | files(evidence, role=role))
    write_evidence(prepared.run, frozen | stored | files(evidence, role=chosen))
    return Done(prepared.run, verdict, evidence)


def _register(
    prepared: Prepared, *, models: dict[str, Model], winner: str, routing: dict[str, Any] | None
) -> dict[str, ModelVersion]:
    versions = {
        role: registered(prepared, model)
        for role, model in models.items()
        if role == "incumbent" or winner in ("candidate", "hybrid")
    }
    if winner == "hybrid":
        assert routing is not None  # rule 4 needs one
        versions["hybrid"] = registered_hybrid(prepared, routing, **versions)
    return versions


def _answers(prepared: Prepared, model: Model, *, set_name: str) -> Predictions:
    """A model's answers on validation, test or a changed set, found again or predicted and kept."""
    splits = prepared.splits
    rows: dict[str, Callable[[], Rows]] = {
        VALIDATION: lambda: splits.validation,
        "test": lambda: splits.test,
        "counterfactual": lambda: counterfactuals(splits.test),
        "noise": lambda: misspelt(splits.test),
    }

    def predict() -> Predictions:
        return remotely(predict_rows, prepared.recipe.training)(model.uri, rows=rows[set_name]())  # type: ignore[no-any-return]

    return _kept(prepared, predict, model=model.uri, set_name=set_name)


def _reference_answers(prepared: Prepared) -> Predictions:
    splits, metric = prepared.splits, prepared.recipe.evaluation.metric

    def predict() -> Predictions:
        function = remotely(predict_reference, prepared.recipe.training)
        return function(splits.test, train=splits.train, validation=splits.validation, metric=metric)  # type: ignore[no-any-return]

    return _kept(prepared, predict, model=f"tf_idf by {metric}", set_name="test")


def _kept(prepared: Prepared, predict: Callable[[], Predictions], *, model: str, set_name: str) -> Predictions:
    def compute(uri: str) -> str:
        save_predictions(f"{uri}/predictions.parquet", predict())
        return f"{uri}/predictions.parquet"

    inputs = prepared.key(model=model, set=set_name)
    if set_name != VALIDATION:
        inputs["test"] = prepared.hashes["test"]
    return load_predictions(once(prepared.recipe.task_uri, "answers", inputs=inputs, compute=compute))
