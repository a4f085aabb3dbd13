"""Gates and their bounds: an estimate with its interval, compared with a limit.

Read next `evaluation/verdict/gates.py`, which evaluates all gates of a model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tailorbird.evaluation.statistics.distributions import norm_isf
from tailorbird.evaluation.statistics.power import MAX_ROWS, TARGET_POWER

Interval = tuple[float, float]


class State(StrEnum):
    """State of a bound or a gate."""

    PASSES = "passes"
    FAILS = "fails"
    NOT_ASSESSABLE = "not assessable"
    NOT_APPLICABLE = (
        "not applicable"  # (gates only) the rows contain nothing that the gate concerns
    )


@dataclass(frozen=True)
class Bound:
    """An estimate with its interval, compared with a limit."""

    what: str  # name of the estimate in reports, for example `debiased ECE`
    estimate: float
    interval: Interval
    limit: float
    n: int  # rows from which the estimate is computed
    state: State
    rows_needed: int | None = None
    """Rows that decide the bound if the estimate does not change; None if it is decided or
    `MAX_ROWS` are too few."""
    detects: float | None = None
    """(losses only) The smallest true loss with which the bound fails in 80% of such tests."""


@dataclass(frozen=True)
class Estimate:
    """An estimate from n rows with its two-sided interval at level 1 - alpha."""

    value: float
    interval: Interval
    n: int
    alpha: float

    @property
    def standard_error(self) -> float:
        """The standard error that the interval implies."""
        low, high = self.interval
        return (high - low) / 2 / float(norm_isf(self.alpha / 2))

    def ends(self, level: float) -> Interval:
        """Return the ends of the one-sided intervals at a level; the normal distribution scales
        both sides."""
        low, high = self.interval
        ratio = float(norm_isf(level) / norm_isf(self.alpha / 2))
        return self.value - ratio * (self.value - low), self.value + ratio * (high - self.value)


@dataclass(frozen=True)
class Gate:
    """A condition that the candidate must meet in addition to its gain."""

    name: str  # `calibration`, `groups`, `counterfactual`, `robustness`, `suites` or `cost`
    state: State
    bounds: tuple[Bound, ...]
    note: str = ""  # further information for readers


def at_most(limit: float, *, what: str, estimate: float, interval: Interval, n: int) -> Bound:
    """Return a bound that passes if the interval is at or below the limit, and fails if it is above
    the limit."""
    low, high = interval
    bound = Bound(
        what=what,
        estimate=estimate,
        interval=interval,
        limit=limit,
        n=n,
        state=State.NOT_ASSESSABLE,
    )
    if high <= limit:
        return replace(bound, state=State.PASSES)
    if low > limit:
        return replace(bound, state=State.FAILS)
    # the side that contains the limit
    half = high - estimate if estimate <= limit else estimate - low
    return replace(bound, rows_needed=rows_needed(n, half=half, distance=abs(estimate - limit)))


def no_loss(limit: float, *, what: str, loss: Estimate, num_losses: int = 1) -> Bound:
    """Return a bound on a loss against the incumbent, one of `num_losses` in a gate.

    It fails if the incumbent is proven better: the measured loss is at least the limit, and its
    one-sided interval at alpha / 2, or at alpha / `num_losses` if that is lower, is above 0. It
    passes if the candidate is non-inferior: the interval is at or below the limit.
    """
    level = min(loss.alpha / 2, loss.alpha / num_losses)
    bound = Bound(
        what=what,
        estimate=loss.value,
        interval=loss.interval,
        limit=limit,
        n=loss.n,
        state=State.NOT_ASSESSABLE,
        detects=_detected(limit, loss=loss, level=level),
    )
    if loss.interval[1] <= limit:
        return replace(bound, state=State.PASSES)
    low = loss.ends(level)[0]
    if loss.value >= limit:
        if low > 0:
            return replace(bound, state=State.FAILS)
        return replace(
            bound, rows_needed=rows_needed(loss.n, half=loss.value - low, distance=loss.value)
        )
    half = loss.interval[1] - loss.value
    return replace(bound, rows_needed=rows_needed(loss.n, half=half, distance=limit - loss.value))


def gate(name: str, bounds: Sequence[Bound], *, note: str = "") -> Gate:
    """Return a gate that fails if any bound fails and passes if all bounds pass.

    Otherwise, and without bounds, it is not assessable.
    """
    states = {bound.state for bound in bounds}
    if State.FAILS in states:
        state = State.FAILS
    elif states == {State.PASSES}:
        state = State.PASSES
    else:
        state = State.NOT_ASSESSABLE
    return Gate(name=name, state=state, bounds=tuple(bounds), note=note)


def rows_needed(n: int, *, half: float, distance: float) -> int | None:
    """Return the rows with which half an interval is as wide as the distance; None if `MAX_ROWS`
    are too few."""
    # The width of an interval decreases with the square root of the rows.
    if distance**2 * MAX_ROWS < n * half**2:
        return None
    return max(n + 1, round(n * (half / distance) ** 2))


def _detected(limit: float, *, loss: Estimate, level: float) -> float:
    """Return the smallest true loss that is measured as at least the limit and as significant in
    80% of tests.

    A loss of all of the score on some of the rows adds to the variance of the measured difference.
    """
    z = float(norm_isf(level))
    z_power = float(norm_isf(1 - TARGET_POWER))
    smallest = limit
    for _ in range(100):
        error = math.sqrt(loss.standard_error**2 + smallest * (1 - smallest) / loss.n)
        smallest = min(max(limit, z * error) + z_power * error, 1.0)
    return smallest
