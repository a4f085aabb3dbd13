"""The cost gate: compare the value of the gain with the cost of training and serving."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from tailorbird.config.evaluation import CostConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.statistics.paired import Comparison

MIN_ROUNDS = 5
SECONDS_PER_HOUR = 3600
MAX_SHRINK = 1000.0
"""Largest factor by which an interval may have to shrink; a larger factor needs over a million times the rows."""


ServingCosts = Mapping[str, tuple[float, ...]]
"""CPU-seconds per thousand rows of each model by role, one value per alternating round."""


@dataclass(frozen=True)
class CpuRounds:
    """CPU-seconds per thousand rows of both models, one value per model and alternating round."""

    incumbent: tuple[float, ...]
    candidate: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.incumbent) != len(self.candidate) or len(self.incumbent) < MIN_ROUNDS:
            raise ValueError(
                f"{len(self.incumbent)} rounds of the incumbent and {len(self.candidate)} of the candidate; measure "
                f"both in the same {MIN_ROUNDS} or more rounds"
            )
        seconds = np.array([*self.incumbent, *self.candidate])
        if not (np.isfinite(seconds) & (seconds > 0)).all():
            raise ValueError(f"CPU-seconds {sorted(seconds.tolist())} must be finite and above 0; measure on more rows")


def cpu_rounds(costs: ServingCosts, *, candidate: str = "candidate", incumbent: str = "incumbent") -> CpuRounds:
    """Return the measured cost of the models in two roles as a pair."""
    return CpuRounds(incumbent=tuple(costs[incumbent]), candidate=tuple(costs[candidate]))


def cost_ratio(rounds: CpuRounds, *, alpha: float = 0.05) -> tuple[float, tuple[float, float]]:
    """Return the candidate's CPU-seconds divided by the incumbent's: geometric mean over rounds and 1 - alpha interval.

    The interval is Student's t on the logarithms of the ratios per round, because the load of the machine in a round
    affects both models.
    """
    logs = np.log(rounds.candidate) - np.log(rounds.incumbent)
    num_rounds = len(logs)
    half = t.ppf(1 - alpha / 2, num_rounds - 1) * logs.std(ddof=1) / np.sqrt(num_rounds)
    low, estimate, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return float(estimate), (float(low), float(high))


@dataclass(frozen=True)
class NetBenefit:
    """The parts of the net benefit over the horizon, in the recipe's currency."""

    value_of_one: float  # value of a gain of 1 (100 points)
    training: float
    saving: float  # in serving, by the candidate
    half_saving: float  # half the width of the saving's interval

    def at(self, gain: float) -> float:
        """Return the net benefit at a gain: its value - cost of training + saving in serving."""
        return self.value_of_one * gain - self.training + self.saving

    def interval(self, gain: float, *, of_gain: tuple[float, float]) -> tuple[float, float]:
        """Return the interval from those of the gain and of the saving, by square-and-add (they are independent)."""
        low, high = (np.hypot(self.value_of_one * (end - gain), self.half_saving) for end in of_gain)
        return self.at(gain) - float(low), self.at(gain) + float(high)


def net_benefit(terms: CostConfig, *, rounds: CpuRounds, training_cpu_s: float, alpha: float) -> NetBenefit:
    """Return the net benefit with Student's t interval of the saving over the rounds, two-sided at level 1 - alpha.

    Raises ValueError for an invalid training time.
    """
    if not (np.isfinite(training_cpu_s) and training_cpu_s >= 0):
        raise ValueError(f"training_cpu_s is {training_cpu_s}; give a finite time of 0 or more")
    requests = terms.requests_per_month * terms.horizon_months
    price_per_cpu_s = terms.price_per_cpu_hour / SECONDS_PER_HOUR
    saved = (np.array(rounds.incumbent) - np.array(rounds.candidate)) / 1000 * requests * price_per_cpu_s
    half = t.ppf(1 - alpha / 2, len(saved) - 1) * saved.std(ddof=1) / np.sqrt(len(saved))
    return NetBenefit(
        terms.value_of_correct * requests, training_cpu_s * price_per_cpu_s, float(saved.mean()), float(half)
    )


def cost_gate(main: Comparison, *, benefit: NetBenefit, horizon_months: float) -> Gate:
    """Return the cost gate: it passes if the interval of the net benefit is above 0, and fails if it is not above 0.

    The gain is a share of correct answers, because the recipe states the value of a correct answer. `main` is therefore
    the comparison in accuracy, also if the recipe's metric is macro-F1. For chat tasks, it is the comparison in the
    recipe's metric, and a point of the metric has the price of a point of accuracy.
    """
    estimate, (low, high) = benefit.at(main.gain), benefit.interval(main.gain, of_gain=main.interval)
    state = State.PASSES if low > 0 else State.FAILS if high <= 0 else State.NOT_ASSESSABLE
    n = main.counts.n
    needed = _rows_needed(main, benefit=benefit, n=n) if state is State.NOT_ASSESSABLE else None
    bound = Bound("net benefit over the horizon", estimate, (low, high), 0.0, n, state, needed)
    saving = f"serving {benefit.saving:+,.2f} (+- {benefit.half_saving:,.2f})"
    parts = f"gain {benefit.value_of_one * main.gain:+,.2f}, training {-benefit.training:+,.2f}, {saving}"
    note = f"over {horizon_months:g} months, in the recipe's currency: {parts}"
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
