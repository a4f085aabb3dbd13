"""The cost gate: whether the gain pays for training and serving."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from tailorbird.config.evaluation import CostConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.statistics.paired import Comparison

LEAST_ROUNDS = 5
SECONDS_PER_HOUR = 3600
MOST_SHRINK = 1000.0
"""An interval that would have to shrink more, which takes a million times the rows, is decided by no number of them."""


@dataclass(frozen=True)
class CpuRounds:
    """CPU-seconds per thousand rows of both models, one value of each per alternating round."""

    incumbent: tuple[float, ...]
    candidate: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.incumbent) != len(self.candidate) or len(self.incumbent) < LEAST_ROUNDS:
            raise ValueError(
                f"{len(self.incumbent)} rounds of the incumbent and {len(self.candidate)} of the candidate; "
                f"measure both in the same rounds, {LEAST_ROUNDS} or more"
            )
        seconds = np.array([*self.incumbent, *self.candidate])
        if not (np.isfinite(seconds) & (seconds > 0)).all():
            raise ValueError(f"CPU-seconds {sorted(seconds.tolist())} must be finite and above 0; measure on more rows")


def cost_ratio(rounds: CpuRounds, *, alpha: float = 0.05) -> tuple[float, tuple[float, float]]:
    """Return the candidate's CPU-seconds over the incumbent's: geometric mean over rounds, and its 1 - alpha interval.

    Student's t on the logarithms of the rounds' ratios: what slows the machine for a round slows both its halves.
    """
    logs = np.log(rounds.candidate) - np.log(rounds.incumbent)
    num_rounds = len(logs)
    half = t.ppf(1 - alpha / 2, num_rounds - 1) * logs.std(ddof=1) / np.sqrt(num_rounds)
    low, estimate, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return float(estimate), (float(low), float(high))


def net_benefit(gain: float, *, terms: CostConfig, rounds: CpuRounds, training_cpu_s: float) -> float:
    """Return the money over the horizon at a gain in accuracy: worth of the gain - training + saving in serving."""
    worth, training, saved = _parts(gain, terms=terms, rounds=rounds, training_cpu_s=training_cpu_s)
    return worth - training + saved


def cost_gate(main: Comparison, *, terms: CostConfig, rounds: CpuRounds, training_cpu_s: float) -> Gate:
    """Pass if the net benefit over the horizon is above 0 at the lower end of the gain; fail if not at the upper end.

    The gain is counted in correct answers, so `main` is the comparison by accuracy, and of a chat task by its metric,
    a point of which is priced as one of correct answers. Raises ValueError for an invalid training time.
    """
    if not (np.isfinite(training_cpu_s) and training_cpu_s >= 0):
        raise ValueError(f"training took {training_cpu_s} CPU-seconds; give a finite time of 0 or more")
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
    if state is State.NOT_ASSESSABLE and shrink < MOST_SHRINK:
        needed = max(n + 1, round(n * shrink**2))  # an interval shrinks with the root of the rows
    bound = Bound("net benefit over the horizon", estimate, (low, high), 0.0, n, state, needed)
    worth, training, saved = _parts(main.gain, terms=terms, rounds=rounds, training_cpu_s=training_cpu_s)
    parts = f"gain {worth:+,.2f}, training {-training:+,.2f}, serving {saved:+,.2f}"
    note = f"over {terms.horizon_months:g} months: {parts} in the recipe's currency"
    if main.gain != main.counts.gain:
        note += "; the gain is not one of accuracy, and each point of it is priced as one of correct answers"
    return gate("cost", (bound,), note=note)


def _parts(gain: float, *, terms: CostConfig, rounds: CpuRounds, training_cpu_s: float) -> tuple[float, float, float]:
    """Return the worth of the gain, the cost of training, and the saving in serving, in money."""
    requests = terms.requests_per_month * terms.horizon_months
    price_per_cpu_s = terms.price_per_cpu_hour / SECONDS_PER_HOUR
    saved_cpu_s = float(np.mean(rounds.incumbent) - np.mean(rounds.candidate)) / 1000 * requests
    return gain * terms.value_of_correct * requests, training_cpu_s * price_per_cpu_s, saved_cpu_s * price_per_cpu_s
