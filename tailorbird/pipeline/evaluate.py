"""The last stages of a run: freeze the family, predict test once, decide, and publish the
evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.data.fingerprints import fingerprints, user_texts
from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.baseline import other_baselines
from tailorbird.evaluation.hybrid import FrozenHybrid, fit_hybrid, roles_on_validation
from tailorbird.evaluation.inference.perturbations import PERTURBATIONS
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import TRAINING_TEXT, Predictions
from tailorbird.evaluation.report.evidence import (
    FAMILY_FILE,
    UNREGISTERED,
    CandidateRecord,
    CostRecord,
    Evidence,
    Family,
    FrozenAnchor,
    FrozenModel,
)
from tailorbird.evaluation.report.evidence_files import (
    MANIFEST,
    VALIDATION,
    intact_evidence,
    render_files,
    write_evidence,
)
from tailorbird.evaluation.report.preregistration import PROTOCOL_FILE
from tailorbird.evaluation.verdict.decide import ANCHOR
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX, VerdictInputs
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pipeline.artifacts import register_contender, register_hybrid
from tailorbird.pipeline.cost import endpoint_answers, measure_cost
from tailorbird.pipeline.endpoint_contender import predict_contender, request_limits
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.record import EvaluatedModels, TrainedModels, build_evidence
from tailorbird.registry.test_set_ledger import record_test_access
from tailorbird.registry.versions import (
    ModelVersion,
    RegistryError,
    VersionConfig,
    read_artifact_config,
    read_version,
)
from tailorbird.storage.node_cache import sha256_files

ROWS_NAMES = {
    "test": "test rows",
    "counterfactual": "test rows with changed demographic terms",
    "noise": "test rows with typing errors",
    VALIDATION: "validation rows",
}


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run."""

    evidence: Evidence

    @property
    def run(self) -> str:
        """URI of the run's evidence."""
        return self.evidence.run

    @property
    def verdict(self) -> Verdict:
        return self.evidence.verdict

    @property
    def winner(self) -> str:
        """URI of the winning version."""
        return self.evidence.winner.uri


def find_finished_run(context: RunContext) -> RunResult | None:
    """Return the run's stored result, even if it has expired, because the same rows give the same
    verdict.

    Return None if the run is not finished, or if publishing was interrupted so that the evidence
    does not match its manifest. The evidence is then published again from the cached stages.
    """
    if not storage.exists(f"{context.run}/{MANIFEST}"):
        return None
    evidence = intact_evidence(context.run)
    if evidence is None:
        return None
    return RunResult(evidence)


def evaluate_run(context: RunContext, trained: TrainedModels) -> RunResult:
    """Freeze the models to compare, predict the test rows once, decide, and publish the
    evidence."""
    family = freeze_family(context, trained)
    test = context.splits.test
    progress = context.progress
    kinds = [model.kind for model in family.models]
    progress.stage(f"test: {', '.join(kinds[:-1])} and {kinds[-1]} on the same {len(test):,} rows")
    if (hybrid := family.hybrid) is not None:
        progress.note(
            f"hybrid of {hybrid.first} and {hybrid.second}: validation {hybrid.validation:.3f}"
        )
    models = {model.role: model.uri for model in family.models}
    # Record the access before the first prediction, so that a run that fails later is counted too.
    access = record_test_access(
        context.recipe.task_uri,
        rows=fingerprints(user_texts(test)),
        models=list(models.values()),
        protocol=digest(context.protocol.model_dump(mode="json")),
        run=context.run,
    )
    tables = predict_all(context, models, on_validation=validation_models(context, trained))
    if family.anchor is not None and not family.anchor.problem:
        progress.activity("the anchor on the test rows")
        tables[ANCHOR] = stored_predictions(context, family.anchor.uri, rows_name="test")
    predict = partial(stored_predictions, context, rows_name="test")
    progress.activity("measuring the cost of all models in alternating rounds")
    measured = measure_cost(context, models, hybrid=hybrid, tables=tables, predict=predict)
    progress.activity("computing the verdict")
    cost = CostRecord(measured.serving, trained.usage(context.recipe.training), measured.device)
    limits = request_limits(context.inputs)
    answers = endpoint_answers(models, rows=test, tables=tables, predict=predict, limits=limits)
    evaluated = EvaluatedModels(
        family=family, test_access=access, predictions=tables, cost=cost, endpoint_answers=answers
    )
    verdict = reach_verdict(verdict_inputs(context, evaluated), protocol=context.protocol)
    progress.stage("registry: storing the verdict, its evidence and the selected version")
    return publish(context, trained, evaluated, verdict)


def freeze_family(context: RunContext, trained: TrainedModels) -> Family:
    """Return the models to compare and the hybrid, as stored before the test rows are read.

    Raises ValueError if an interrupted run was resumed with other models or another hybrid.
    """
    hybrid = fit_hybrid_on_validation(context, trained)
    compared = trained.contenders
    if hybrid is not None:
        compared |= {role: trained.servable[role] for role in hybrid.parts}
    models = [
        FrozenModel(role, model.kind, uri=model.uri, validation=model.validation)
        for role, model in compared.items()
    ]
    family = Family(
        models=tuple(models),
        replacing=other_baselines(trained.baselines).replacing,
        hybrid=hybrid,
        anchor=_freeze_anchor(context),
        headroom=trained.headroom,
    )
    stored = storage.write_once(f"{context.run}/{FAMILY_FILE}", family)
    if stored != family:
        what = "another hybrid, anchor or headroom"
        if stored.models != family.models:
            what = "other models"
        raise ValueError(
            f"{context.run}/{FAMILY_FILE} has {what} than this run; change the recipe (for example "
            "the seed) to start a new run"
        )
    return stored


def _freeze_anchor(context: RunContext) -> FrozenAnchor | None:
    """Return the anchor, with the reason if it cannot predict the test rows; None if the incumbent
    is the anchor."""
    uri = context.registered.anchor
    if uri is None:
        return None
    try:
        version = read_version(uri)
    except RegistryError as error:
        return FrozenAnchor(uri, f"it cannot be read: {error}")
    if (version.task, version.classes) != (context.recipe.task, context.task.classes):
        return FrozenAnchor(uri, "it has another task or other classes")
    return FrozenAnchor(uri)


def fit_hybrid_on_validation(context: RunContext, trained: TrainedModels) -> FrozenHybrid | None:
    """Return the hybrid fitted on validation; None if the recipe allows none, or none is good
    enough."""
    config = context.protocol.hybrid
    if config is None:
        return None
    tables = {
        role: stored_predictions(context, uri, rows_name=VALIDATION)
        for role, uri in validation_models(context, trained).items()
    }
    return fit_hybrid(config, tables, metric=context.protocol.metric)


def validation_models(context: RunContext, trained: TrainedModels) -> dict[str, str]:
    """Return the URIs of the models whose predictions of the validation rows are stored, by
    `roles_on_validation`."""
    servable = trained.servable
    # The kind of the champion among the contenders is `champion`, so it is read from the artifact.
    kinds = {role: read_artifact_config(contender.uri).kind for role, contender in servable.items()}
    validation = {role: contender.validation for role, contender in servable.items()}
    roles = roles_on_validation(context.protocol.hybrid, kinds, validation=validation)
    return {role: servable[role].uri for role in roles}


def predict_all(
    context: RunContext, models: Mapping[str, str], *, on_validation: Mapping[str, str]
) -> dict[str, Predictions]:
    """Return predictions by table name: of all models on test, on the changed test sets of the
    gates, and on suites.

    Both arguments are URIs by role. The tables of the models in `on_validation` are those of the
    validation rows.
    """
    sets = (
        *context.protocol.gates.changed_sets,
        *(f"{SUITE_PREFIX}{name}" for name in context.inputs.data.suites),
    )
    tables = {}
    for role, uri in models.items():
        for name in ("test", *sets):
            context.progress.activity(
                f"{role} on the {ROWS_NAMES.get(name) or name.replace(SUITE_PREFIX, 'suite ')}"
            )
            table = stored_predictions(context, uri, rows_name=name)
            tables[role if name == "test" else f"{role}_{name}"] = table
    for role, uri in on_validation.items():
        context.progress.activity(f"{role} on the {ROWS_NAMES[VALIDATION]}")
        tables[f"{role}_{VALIDATION}"] = stored_predictions(context, uri, rows_name=VALIDATION)
    return tables


def verdict_inputs(context: RunContext, evaluated: EvaluatedModels) -> VerdictInputs:
    """Return the inputs of the verdict."""
    return evaluated.family.verdict_inputs(
        evaluated.predictions,
        test_sha256=context.inputs.data.hashes["test"],
        cost=evaluated.cost,
        look=evaluated.test_access,
        trained_rows=context.registered.trained_rows,
    )


def publish(
    context: RunContext, trained: TrainedModels, evaluated: EvaluatedModels, verdict: Verdict
) -> RunResult:
    """Register the incumbent and the winner, and write the evidence to the run and to the
    versions."""
    chosen = verdict.selected
    family = evaluated.family
    versions = _register(context, family, winner=chosen)
    compared = {}
    for model in family.models:
        config = read_artifact_config(model.uri)
        compared[model.role] = CandidateRecord(
            config.kind,
            model.uri,
            UNREGISTERED,
            base_model=_base_model(context, config),
            reported_model=_reported_model(config),
            files=sha256_files(model.uri),
            offsets=config.nonzero_offsets,
        )
    for role, version in versions.items():
        compared[role] = CandidateRecord(
            version.kind,
            version.uri,
            version.digest,
            base_model=_base_model(context, version),
            reported_model=_reported_model(version),
            offsets=version.nonzero_offsets,
        )
    evidence = build_evidence(context, trained, evaluated, versions=compared, verdict=verdict)
    for name, table in evaluated.predictions.items():
        save_predictions(f"{context.run}/predictions/{name}.parquet", table)
    names = [f"predictions/{name}.parquet" for name in evaluated.predictions]
    names += [
        name for name in (PROTOCOL_FILE, FAMILY_FILE) if storage.exists(f"{context.run}/{name}")
    ]
    files = {name: storage.read_bytes(f"{context.run}/{name}") for name in names}
    for role, version in versions.items():
        # An existing version keeps the evidence of the run that registered it.
        if not storage.exists(f"{version.uri}/{MANIFEST}"):
            write_evidence(version.uri, files | render_files(evidence, role=role))
    write_evidence(context.run, files | render_files(evidence, role=chosen))
    return RunResult(evidence)


def _base_model(context: RunContext, config: VersionConfig) -> str | None:
    """Return the source of a model's base model, or its URI if it is not of this run; None without
    one."""
    if not config.spec.uses_base:
        return None
    sources = {base.record.uri: base.record.source for base in context.inputs.bases}
    return sources.get(config.base_model, config.base_model)


def _reported_model(config: VersionConfig) -> str | None:
    """Return the model that the endpoint of a version named; None without an endpoint."""
    return None if config.endpoint is None else config.endpoint.reported_model


def _register(context: RunContext, family: Family, *, winner: str) -> dict[str, ModelVersion]:
    """Return the registered versions by role: the incumbent, the winner, and both parts of a
    hybrid."""
    inputs = context.inputs
    task_uri = context.recipe.task_uri
    hybrid = family.hybrid
    uris = {model.role: model.uri for model in family.models}
    limits = request_limits(inputs)
    register = partial(
        register_contender, task_uri, code=inputs.code.uri, limits=limits, data=inputs.data
    )
    if winner != "hybrid":
        roles = dict.fromkeys(("incumbent", winner))
        return {role: register(uris[role]) for role in roles}
    assert hybrid is not None  # a selected hybrid was frozen
    roles = dict.fromkeys(("incumbent", *hybrid.parts))
    versions = {role: register(uris[role]) for role in roles}
    first, second = hybrid.parts
    versions["hybrid"] = register_hybrid(
        task_uri, versions[first], second=versions[second], routing=hybrid.routing
    )
    return versions


def stored_predictions(context: RunContext, uri: str, *, rows_name: str) -> Predictions:
    """Return the predictions of validation, test, a changed test set or a suite; a cached stage."""
    inputs = context.inputs
    on_gpu = context.recipe.serving.gpus_per_replica > 0
    changes = [PERTURBATIONS[rows_name]] if rows_name in PERTURBATIONS else []
    stage_inputs = inputs.stage_inputs(
        predict_rows, *changes, model=uri, rows=rows_name, on_gpu=on_gpu
    )
    if rows_name.startswith(SUITE_PREFIX):
        stage_inputs["suite"] = inputs.hashes[rows_name]
    elif rows_name != VALIDATION:
        stage_inputs["test"] = inputs.data.hashes["test"]

    def compute(folder: str) -> str:
        table = predict_contender(inputs, uri, rows=_rows(context, rows_name), on_gpu=on_gpu)
        if rows_name.startswith(SUITE_PREFIX):
            flag = float(read_artifact_config(uri).contains_training_text)
            table = replace(table, measures={TRAINING_TEXT: np.full(len(table), flag)})
        save_predictions(f"{folder}/predictions.parquet", table)
        return f"{folder}/predictions.parquet"

    return load_predictions(
        inputs.cached("predictions", output=str, inputs=stage_inputs, compute=compute)
    )


def _rows(context: RunContext, name: str) -> Rows:
    """Return the rows of validation, test, a changed test set or a suite."""
    if name in PERTURBATIONS:
        return PERTURBATIONS[name](context.splits.test)
    if name.startswith(SUITE_PREFIX):
        return context.inputs.data.suites[name.removeprefix(SUITE_PREFIX)]
    if name == VALIDATION:
        return context.splits.validation
    return context.splits.test
