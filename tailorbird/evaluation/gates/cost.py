"""The cost gate: compare the value of the gain with the cost of training and serving."""

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


def net_benefit(gain: float, *, terms: CostConfig, rounds: CpuRounds, training_cpu_s: float) -> float:
    """Return the net benefit over the horizon: value of the gain - cost of training + saving in serving."""
    value, training, saved = _parts(gain, terms=terms, rounds=rounds, training_cpu_s=training_cpu_s)
    return value - training + saved


def cost_gate(main: Comparison, *, terms: CostConfig, rounds: CpuRounds, training_cpu_s: float) -> Gate:
    """Return the cost gate: it passes if the net benefit is above 0 at the lower end of the gain's interval.

    It fails if the net benefit is not above 0 at the upper end. The gain is a share of correct answers, so `main` is
    the comparison in accuracy. For chat tasks, it is the comparison in the recipe's metric, and a point of the metric
    has the price of a point of accuracy. Raises ValueError for an invalid training time.
    """
    if not (np.isfinite(training_cpu_s) and training_cpu_s >= 0):
        raise ValueError(f"training_cpu_s is {training_cpu_s}; give a finite time of 0 or more")
    low, estimate, high = (
        net_benefit(gain, terms=terms, rounds=rounds, training_cpu_s=training_cpu_s)
        for gain in (main.interval[0], main.gain, main.interval[1])
    )
    if low > 0:
        state = State.PASSES
    elif high <= 0:
        state = State.FAILS
    else:
        state = State.NOT_ASSESSABLE
    n, needed = main.counts.n, None
    shrink = (high - low) / 2 / abs(estimate) if estimate else np.inf
    if state is State.NOT_ASSESSABLE and shrink < MAX_SHRINK:
        needed = max(n + 1, round(n * shrink**2))  # the width decreases with the square root of the rows
    bound = Bound("net benefit over the horizon", estimate, (low, high), 0.0, n, state, needed)
    value, training, saved = _parts(main.gain, terms=terms, rounds=rounds, training_cpu_s=training_cpu_s)
    parts = f"gain {value:+,.2f}, training {-training:+,.2f}, serving {saved:+,.2f}"
    note = f"over {terms.horizon_months:g} months, in the recipe's currency: {parts}"
    if main.gain != main.counts.gain:
        note += "; the gain is not measured in accuracy, so each point is priced like a point of accuracy"
    return gate("cost", (bound,), note=note)


def _parts(gain: float, *, terms: CostConfig, rounds: CpuRounds, training_cpu_s: float) -> tuple[float, float, float]:
    """Return the value of the gain, the cost of training and the saving in serving, in the recipe's currency."""
    requests = terms.requests_per_month * terms.horizon_months
    price_per_cpu_s = terms.price_per_cpu_hour / SECONDS_PER_HOUR
    saved_cpu_s = float(np.mean(rounds.incumbent) - np.mean(rounds.candidate)) / 1000 * requests
    return gain * terms.value_of_correct * requests, training_cpu_s * price_per_cpu_s, saved_cpu_s * price_per_cpu_s
