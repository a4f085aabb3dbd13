"""Simulated predictions, costs and test protocols for the benchmarks of the statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from tailorbird.config.evaluation import GatesConfig
from tailorbird.evaluation.gates.cost import SECONDS_PER_HOUR, ServingUsage
from tailorbird.evaluation.gates.prices import CostTerms
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tests.build import predictions

ALPHA = 0.05
MARGIN = 0.01
"""`minimum_gain` and `non_inferiority_margin`"""
CORRELATION = 0.8
"""Of the latent scores of two models: at accuracies of 0.75, they differ on 17% of the rows."""


def right_answers(
    generator: np.random.Generator,
    num_rows: int,
    *,
    accuracies: Sequence[float] | NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which model is right on which row [rows, models]; a row has a difficulty that all
    models share."""
    least = norm.isf(accuracies)
    shared = generator.standard_normal((num_rows, 1))
    single = generator.standard_normal((num_rows, least.shape[-1]))
    return np.asarray(np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * single > least)


def answers(
    right: NDArray[np.bool_],
    *,
    labels: ArrayLike = "yes",
    wrong: ArrayLike = "no",
    **columns: Any,
) -> Predictions:
    """Return predictions that are right on these rows [N]; `columns` are further fields of
    `Predictions`, and classes may be numbers."""
    truth = np.broadcast_to(labels, right.shape).astype(str)
    outputs = np.where(right, truth, np.asarray(wrong, str))
    return predictions(outputs.tolist(), truth.tolist(), **columns)


def serving_usage(costs: Mapping[str, float]) -> dict[str, ServingUsage]:
    """Return CPU-seconds of five rounds for costs by role."""
    rounds = (1.0, 1.01, 0.99, 1.0, 1.0)
    return {
        role: ServingUsage(tuple(cost * part for part in rounds)) for role, cost in costs.items()
    }


def simulated_protocol(
    num_rows: int,
    *,
    value_of_point: float | None = None,
    gates: GatesConfig = NO_GATES,
    required_gates: tuple[str, ...] = (),
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
        metric="accuracy",
        minimum_gain=MARGIN,
        non_inferiority_margin=MARGIN,
        expected_gain=0.03,
        alpha=ALPHA,
        test_sha256="simulated",
        num_test_rows=num_rows,
        gates=gates,
        required_gates=required_gates,
        cost=prices,
        hybrid="cascade",
    )
