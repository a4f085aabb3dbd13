"""Predictions with given right answers, and the protocols and inputs of their verdicts."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.gates.cost import TrainingUsage
from tailorbird.evaluation.gates.prices import CostTerms
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.headroom import Headroom
from tailorbird.evaluation.verdict.decide import Decision, decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.reach import compare_models
from tailorbird.registry.hybrid_routing import Routing
from tests import build
from tests.unit.evaluation.simulated import KINDS, on_cpu, with_hybrid_cost

SHA = "ab" * 32
BoolArray = NDArray[np.bool_]


def predictions(kind: str, right: BoolArray) -> Predictions:
    """Return one prediction per entry of `right`; every label is `yes`."""
    outputs = np.where(right, "yes", "no").tolist()
    return build.predictions(outputs, ("yes",) * len(right), model=kind)


def correlated(
    generator: np.random.Generator, num_rows: int, **accuracy: float
) -> dict[str, BoolArray]:
    """Return which rows the models get right: four of five rows are as hard for each of them."""
    shared = generator.random(num_rows)
    rows = {}
    for role, level in accuracy.items():
        luck = np.where(generator.random(num_rows) < 0.8, shared, generator.random(num_rows))
        rows[role] = luck < level
    return rows


def models(
    both: int, only_candidate: int, only_incumbent: int, neither: int
) -> tuple[Predictions, Predictions]:
    """Return the tables of the incumbent and the candidate with these numbers of rows."""
    cells = np.repeat([0, 1, 2, 3], [both, only_candidate, only_incumbent, neither])
    return predictions("probe", (cells == 0) | (cells == 2)), predictions(
        "full", (cells == 0) | (cells == 1)
    )


def models_in_documents(num_documents: int, *, size: int) -> tuple[Predictions, Predictions]:
    """Return the incumbent's and the candidate's table; three rows are lost and two gained, in
    different documents."""
    rows = np.arange(num_documents * size)
    documents = tuple(str(row // size) for row in rows)
    incumbent = predictions("probe", ~np.isin(rows, (size * 3, size * 4)))
    candidate = predictions("full", ~np.isin(rows, (0, size, size * 2)))
    return replace(incumbent, clusters=documents), replace(candidate, clusters=documents)


def protocol_for(num_test_rows: int, **changes: Any) -> TestProtocol:
    values = {
        "metric": "accuracy",
        "minimum_gain": 0.01,
        "expected_gain": 0.02,
        "non_inferiority_margin": 0.01,
        "alpha": 0.05,
        "test_sha256": SHA,
        "num_test_rows": num_test_rows,
    }
    return TestProtocol.model_validate(values | changes)


def inputs_of(
    incumbent: Predictions, candidate: Predictions, *contenders: Predictions
) -> VerdictInputs:
    """Return the inputs of a verdict; the roles of contenders are their kinds, and any may replace
    the incumbent."""
    models = {"incumbent": ModelPredictions(incumbent), "candidate": ModelPredictions(candidate)}
    for table in contenders:
        models[table.model] = ModelPredictions(table)
    return VerdictInputs(models, SHA, replacing=tuple(table.model for table in contenders))


def inputs_of_right(**right: BoolArray) -> VerdictInputs:
    """Return the inputs of models by role, which are right on these rows."""
    return inputs_of(*(predictions(KINDS.get(role, role), rows) for role, rows in right.items()))


def decision_of(inputs: VerdictInputs, *, protocol: TestProtocol) -> Decision:
    """Return the decision without the power of the test."""
    compared = compare_models(inputs, on_all_rows=inputs, protocol=protocol)
    return decide(compared.entries, compared.relate, protocol=protocol)


# Models on the same 2,000 rows, with prices.

N = 2_000
ROW = np.arange(N)
PRICES = CostTerms(
    value_of_correct=0.0005,
    requests_per_month=10_000 / 12,
    price_per_cpu_hour=3.6,
)
"""In a year of 10,000 requests, a point is worth 0.05, and a CPU-second for a thousand rows costs
0.01."""
PROTOCOL = protocol_for(N)
PRICED = protocol_for(N, cost=PRICES)
CASCADE = protocol_for(N, cost=PRICES, hybrid="cascade")


def right(count: int) -> BoolArray:
    """Return which rows are right: the first `count`."""
    return count > ROW


HEADROOM = Headroom(0.999, most=0.00258, level=0.05, num_rows=3000)


def without_candidate(inputs: VerdictInputs) -> VerdictInputs:
    """Return the inputs of a run that trained no model, because there was nothing to gain."""
    models = {role: model for role, model in inputs.models.items() if role != "candidate"}
    return replace(inputs, models=models, headroom=HEADROOM)


def measured(inputs: VerdictInputs, **seconds: float) -> VerdictInputs:
    """Return the inputs with the cost of serving each model in CPU-seconds for a thousand rows, by
    default 10."""
    costs = on_cpu({role: (seconds.get(role, 10.0),) * 5 for role in inputs.models})
    costs = with_hybrid_cost(
        costs, inputs.hybrid, tables={role: model.clean for role, model in inputs.models.items()}
    )
    return replace(inputs, costs=costs, training=TrainingUsage())


SURE = np.where(ROW % 2 == 0, 0.9, 0.1)  # confidence of a cascade's first part
RIGHT = ROW % 10 < 7  # rows on which the incumbent is right
CHEAP = RIGHT & (SURE > 0.5)
"""As good as the incumbent where the first part is confident, always wrong elsewhere."""
FROZEN = FrozenHybrid(
    Routing(by="cascade", threshold=0.5),
    first="nearest",
    second="incumbent",
    validation=0.7,
    share_to_second=0.5,
)


def cascade(
    *, candidate: BoolArray = RIGHT, cheap: BoolArray = CHEAP, frozen: FrozenHybrid = FROZEN
) -> VerdictInputs:
    """Return the inputs with a cascade whose first part, `nearest`, has a tenth of the others'
    cost."""
    inputs = inputs_of_right(incumbent=RIGHT, candidate=candidate, nearest=cheap)
    sure = replace(inputs.models["nearest"].clean, confidences=SURE, calibrated=SURE)
    models = {**inputs.models, "nearest": ModelPredictions(sure)}
    return measured(replace(inputs, models=models, hybrid=frozen), nearest=1.0)
