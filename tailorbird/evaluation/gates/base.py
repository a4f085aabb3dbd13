"""Gates and their bounds; a bound passes or fails only if its whole interval is on one side of the limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tailorbird.evaluation.statistics.power import MAX_ROWS


class State(StrEnum):
    """State of a bound or a gate."""

    PASSES = "passes"
    FAILS = "fails"
    NOT_ASSESSABLE = "not assessable"
    NOT_APPLICABLE = "not applicable"  # (gates only) the rows contain nothing that the gate concerns


@dataclass(frozen=True)
class Bound:
    """An estimate with its interval, compared with a limit."""

    what: str  # name of the estimate in reports, for example `debiased ECE`
    estimate: float
    interval: tuple[float, float]
    limit: float
    n: int  # rows from which the estimate is computed
    state: State
    rows_needed: int | None = None
    """Rows that decide the bound if the estimate does not change; None if it is decided or `MAX_ROWS` are too few."""
    shrunken: float | None = None
    """(groups only) The estimate shrunken to the mean of all groups (partial pooling)."""


@dataclass(frozen=True)
class Gate:
    """A condition that the candidate must meet in addition to its gain."""

    name: str  # `calibration`, `groups`, `counterfactual`, `robustness`, `suites` or `cost`
    state: State
    bounds: tuple[Bound, ...]
    note: str = ""  # further information for readers


def at_most(limit: float, *, what: str, estimate: float, interval: tuple[float, float], n: int) -> Bound:
    """Return a bound that passes if the interval is at or below the limit, and fails if it is above the limit."""
    low, high = interval
    if high <= limit:
        return Bound(what, estimate, interval, limit, n, State.PASSES)
    if low > limit:
        return Bound(what, estimate, interval, limit, n, State.FAILS)
    half, distance = (high - low) / 2, abs(estimate - limit)
    # The width of an interval decreases with the square root of the rows. No number is enough if estimate equals limit.
    needed = None if distance**2 * MAX_ROWS < n * half**2 else max(n + 1, round(n * (half / distance) ** 2))
    return Bound(what, estimate, interval, limit, n, State.NOT_ASSESSABLE, needed)


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
    return Gate(name, state, tuple(bounds), note)
