"""Gates and their bounds: a bound passes, fails or cannot be assessed by where its whole interval lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """State of a bound or a gate."""

    PASSES = "passes"
    FAILS = "fails"
    NOT_ASSESSABLE = "not assessable"


@dataclass(frozen=True)
class Bound:
    """An estimate with its interval, compared with a limit."""

    what: str  # name of the estimate for readers: `ECE after temperature`
    estimate: float
    interval: tuple[float, float]
    limit: float
    n: int  # rows behind the estimate
    state: State
    rows_needed: int | None = None
    """Rows that would decide it if the estimate stands; None where it is decided or no number would."""


@dataclass(frozen=True)
class Gate:
    """A condition that the candidate must meet besides its gain."""

    name: str  # `calibration`, `groups`, `counterfactual`, `robustness` or `cost`
    state: State
    bounds: tuple[Bound, ...]
    note: str = ""  # further information for readers


def at_most(limit: float, *, what: str, estimate: float, interval: tuple[float, float], n: int) -> Bound:
    """Return a bound whose allowed side is at or under the limit: it passes or fails only with its whole interval."""
    low, high = interval
    if high <= limit:
        return Bound(what, estimate, interval, limit, n, State.PASSES)
    if low > limit:
        return Bound(what, estimate, interval, limit, n, State.FAILS)
    half, distance = (high - low) / 2, abs(estimate - limit)
    # an interval shrinks with the root of the rows; where the estimate lies on the limit no number decides.
    needed = None if distance == 0 else max(n + 1, round(n * (half / distance) ** 2))
    return Bound(what, estimate, interval, limit, n, State.NOT_ASSESSABLE, needed)


def gate(name: str, bounds: Sequence[Bound], *, note: str = "") -> Gate:
    """Return a gate that fails if one bound fails, passes if all of one or more pass, else is not assessable."""
    states = {bound.state for bound in bounds}
    if State.FAILS in states:
        state = State.FAILS
    elif states == {State.PASSES}:
        state = State.PASSES
    else:
        state = State.NOT_ASSESSABLE
    return Gate(name, state, tuple(bounds), note)
