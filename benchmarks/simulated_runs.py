"""Shared parts of the benchmarks of the verdict: simulated predictions of models with known
accuracies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from tailorbird.config.evaluation import GatesConfig
from tailorbird.evaluation.gates.cost import SECONDS_PER_HOUR, ServingUsage
from tailorbird.evaluation.gates.prices import CostTerms
from tailorbird.evaluation.hybrid import FrozenHybrid, PartUsage, hybrid_usage, routed_to_second
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.verdict.decide import CANDIDATE, HYBRID, INCUMBENT, Decision, decide
from tailorbird.evaluation.verdict.inputs import Anchor, VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.reach import Compared, compare_models
from tailorbird.registry.hybrid_routing import Routing

FloatArray = NDArray[np.float64]

ALPHA = 0.05
MARGIN = 0.01  # `minimum_gain` and `non_inferiority_margin`
EXPECTED_GAIN = 0.03
CORRELATION = (
    0.8  # of the latent scores of two models: at accuracies of 0.75, they differ on 17% of the rows
)
NUM_REPLACING = 3  # baselines that may replace the incumbent
CASCADE = Routing(by="cascade", threshold=0.5)


@dataclass(frozen=True)
class Truth:
    """The true accuracies of the models of a run, and the costs of serving them."""

    baselines: tuple[float, ...]  # the champion first
    candidate: float
    num_rows: int = 3_000
    num_validation: int | None = (
        None  # rows that select the incumbent; None if the first baseline is the champion
    )
    costs: tuple[float, ...] = ()  # of the baselines, then of the candidate; empty without prices
    value_of_point: float | None = None
    # a cascade of the incumbent and the candidate, each of which answers half of the rows
    has_hybrid: bool = False

    def compared(self, generator: np.random.Generator) -> Compared:
        """Return the compared models of a simulated run."""
        order = np.arange(len(self.baselines))
        if self.num_validation is not None:
            on_validation = right_answers(generator, self.num_validation, accuracies=self.baselines)
            order = np.argsort(-on_validation.mean(axis=0), kind="stable")
        accuracies = [*np.array(self.baselines)[order], self.candidate]
        right = right_answers(generator, self.num_rows, accuracies=accuracies)
        confidences = generator.uniform(0, 1, self.num_rows)
        roles = [INCUMBENT, *(f"other_{number}" for number in range(1, len(order))), CANDIDATE]
        return compared(
            {
                role: answers(right[:, column], confidences=confidences)
                for column, role in enumerate(roles)
            },
            protocol=protocol(self.num_rows, value_of_point=self.value_of_point),
            costs=dict(zip(roles, self.costs, strict=True)) if self.costs else None,
            hybrid=FrozenHybrid(CASCADE, INCUMBENT, CANDIDATE, 0.75, 0.5)
            if self.has_hybrid
            else None,
        )


def compared(
    models: Mapping[str, ModelPredictions],
    *,
    protocol: TestProtocol,
    costs: Mapping[str, float] | None = None,
    hybrid: FrozenHybrid | None = None,
    anchor: Anchor | None = None,
) -> Compared:
    """Return models by role, compared by the functions of a run; `costs` are by role."""
    others = [role for role in models if role not in (INCUMBENT, CANDIDATE)]
    usage = None
    if costs is not None:
        rounds = np.array((1.0, 1.01, 0.99, 1.0, 1.0))
        usage = {
            role: ServingUsage(tuple((cost * rounds).tolist())) for role, cost in costs.items()
        }
    if usage is not None and hybrid is not None:
        table = models[hybrid.first].clean
        first, second = (PartUsage(usage[role], np.ones(len(table))) for role in hybrid.parts)
        routed = routed_to_second(hybrid.routing, table)
        usage[HYBRID] = hybrid_usage(hybrid.routing, routed=routed, first=first, second=second)
    inputs = VerdictInputs(
        models,
        "simulated",
        replacing=tuple(others[:NUM_REPLACING]),
        hybrid=hybrid,
        anchor=anchor,
        costs=usage,
    )
    return compare_models(inputs, on_all_rows=inputs, protocol=protocol)


def decision(compared: Compared) -> Decision:
    """Return the decision between the compared models."""
    return decide(compared.entries, compared.relate, protocol=compared.costs.protocol)


def protocol(
    num_rows: int,
    *,
    metric: str = "accuracy",
    value_of_point: float | None = None,
    gates: GatesConfig = NO_GATES,
) -> TestProtocol:
    """Return a protocol; with a value of a point, a model's costs are those of a year's
    requests."""
    prices = None
    if value_of_point is not None:
        prices = CostTerms(
            value_of_correct=value_of_point / 10,  # one point is 10 of 1,000 requests
            requests_per_month=1_000 / 12,
            price_per_cpu_hour=SECONDS_PER_HOUR,
        )
    return TestProtocol(
        metric=metric,
        minimum_gain=MARGIN,
        non_inferiority_margin=MARGIN,
        expected_gain=EXPECTED_GAIN,
        alpha=ALPHA,
        test_sha256="simulated",
        num_test_rows=num_rows,
        gates=gates,
        cost=prices,
        hybrid="cascade",
    )


def right_answers(
    generator: np.random.Generator, num_rows: int, *, accuracies: Sequence[float] | FloatArray
) -> NDArray[np.bool_]:
    """Return which model is right on which row [rows, models]; a row has a difficulty that all
    models share."""
    least = norm.isf(accuracies)
    shared = generator.standard_normal((num_rows, 1))
    own = generator.standard_normal((num_rows, least.shape[-1]))
    return np.asarray(np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * own > least)


def answers(
    right: NDArray[np.bool_],
    *,
    labels: NDArray[np.str_] | None = None,
    wrong: NDArray[np.str_] | None = None,
    confidences: FloatArray | None = None,
    **columns: Any,
) -> ModelPredictions:
    """Return a model's predictions that are right on these rows [N]; `columns` are further fields
    of `Predictions`."""
    n = len(right)
    true = np.full(n, "yes") if labels is None else labels
    outputs = np.where(right, true, "no" if wrong is None else wrong)
    confidences = np.full(n, 0.5) if confidences is None else confidences
    return ModelPredictions(
        Predictions(
            model="simulated",
            row_ids=tuple(map(str, range(n))),
            labels=tuple(true.tolist()),
            outputs=tuple(outputs.tolist()),
            scores=right.astype(np.float64),
            confidences=confidences,
            calibrated=confidences,
            **columns,
        )
    )
