"""The cost gate: compare the value of the gain with the cost of training and serving."""

from dataclasses import dataclass

import numpy as np

from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.gates.cost import CostPair, TrainingUsage
from tailorbird.evaluation.gates.prices import (
    CostTerms,
    mean_interval,
    missing_for_serving,
    missing_for_training,
    price_serving,
    price_training,
)
from tailorbird.evaluation.statistics.paired import Comparison

MAX_SHRINK = 1000.0
"""Largest factor by which an interval may have to shrink; a larger factor needs over a million times the rows."""


@dataclass(frozen=True)
class NetBenefit:
    """The parts of the net benefit over the horizon, in the recipe's currency."""

    value_of_one: float  # value of a gain of 1 (100 points)
    training: float
    saving: float  # in serving, by the candidate
    half_saving: float  # half the width of the saving's interval
    trained: TrainingUsage  # the resources that `training` prices

    def at(self, gain: float) -> float:
        """Return the net benefit at a gain: its value - cost of training + saving in serving."""
        return self.value_of_one * gain - self.training + self.saving

    def interval(self, gain: float, *, of_gain: tuple[float, float]) -> tuple[float, float]:
        """Return the interval from those of the gain and of the saving, by square-and-add (they are independent)."""
        low, high = (np.hypot(self.value_of_one * (end - gain), self.half_saving) for end in of_gain)
        return self.at(gain) - float(low), self.at(gain) + float(high)


def net_benefit(terms: CostTerms, *, pair: CostPair, training: TrainingUsage, alpha: float) -> NetBenefit:
    """Return the net benefit with Student's t interval of the saving over the rounds, two-sided at level 1 - alpha.

    Raises ValueError if a price or a measurement is missing.
    """
    ours, theirs = (price_serving(usage, terms=terms).total for usage in (pair.candidate, pair.incumbent))
    saving, half = mean_interval(theirs - ours, alpha=alpha)
    value = terms.value_of_correct * terms.requests
    return NetBenefit(value, price_training(training, terms=terms), saving, half, training)


def cost_gate(main: Comparison, *, terms: CostTerms, pair: CostPair, training: TrainingUsage, alpha: float) -> Gate:
    """Return the cost gate: it passes if the interval of the net benefit is above 0, and fails if it is not above 0.

    It is not assessable if the interval contains 0, or if a price or a measurement is missing. The gain is a share of
    correct answers, because the recipe states the value of a correct answer. `main` is therefore the comparison in
    accuracy, also if the recipe's metric is macro-F1. For chat tasks, it is the comparison in the recipe's metric, and
    a point of the metric has the price of a point of accuracy.
    """
    missing = [
        *missing_for_serving(pair.candidate, terms=terms),
        *missing_for_serving(pair.incumbent, terms=terms),
        *missing_for_training(training, terms=terms),
    ]
    if missing:
        return Gate("cost", State.NOT_ASSESSABLE, (), "; ".join(dict.fromkeys(missing)))
    benefit = net_benefit(terms, pair=pair, training=training, alpha=alpha)
    estimate, (low, high) = benefit.at(main.gain), benefit.interval(main.gain, of_gain=main.interval)
    state = State.PASSES if low > 0 else State.FAILS if high <= 0 else State.NOT_ASSESSABLE
    n = main.counts.n
    needed = _rows_needed(main, benefit=benefit, n=n) if state is State.NOT_ASSESSABLE else None
    bound = Bound("net benefit over the horizon", estimate, (low, high), 0.0, n, state, needed)
    saving = f"serving {benefit.saving:+,.2f} (+- {benefit.half_saving:,.2f})"
    trained = f"training {-benefit.training:+,.2f} for {benefit.trained}"
    parts = f"gain {benefit.value_of_one * main.gain:+,.2f}, {trained}, {saving}"
    note = f"over {terms.horizon_months:g} months, in the recipe's currency: {parts}"
    if main.gain != main.counts.gain:
        note += "; the gain is not measured in accuracy, so each point is priced like a point of accuracy"
    return gate("cost", (bound,), note=note)


def _rows_needed(main: Comparison, *, benefit: NetBenefit, n: int) -> int | None:
    """Return the rows that decide the gate at the same estimates; None if the saving's interval alone contains 0.

    The width of the gain's interval decreases with the square root of the rows, that of the saving does not.
    """
    half, net = benefit.value_of_one * (main.interval[1] - main.interval[0]) / 2, abs(benefit.at(main.gain))
    if net <= benefit.half_saving:
        return None
    shrink = half / net / np.sqrt(1 - (benefit.half_saving / net) ** 2)
    return max(n + 1, round(n * shrink**2)) if shrink < MAX_SHRINK else None
