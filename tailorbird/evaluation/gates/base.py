"""What every gate is made of: bounds that pass, fail or cannot be assessed, by where their whole interval lies."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class State(StrEnum):
    """What is known of a bound or a gate."""

    PASSES = "passes"
    FAILS = "fails"
    NOT_ASSESSABLE = "not assessable"


@dataclass(frozen=True)
class Bound:
    """One estimate beside its limit."""

    what: str
    """What was estimated, as a reader understands it: `ECE after temperature`."""
    estimate: float
    interval: tuple[float, float]
    limit: float
    n: int
    """Rows behind the estimate."""
    state: State
    rows_needed: int | None = None
    """Rows that would decide it if the estimate stands; None where it is decided or no number would."""


@dataclass(frozen=True)
class Gate:
    """A condition on the candidate beside its gain."""

    name: str
    """`calibration`, `groups`, `counterfactual`, `robustness` or `cost`."""
    state: State
    bounds: tuple[Bound, ...]
    note: str = ""
    """What a reader should know besides the bounds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        value = asdict(self)
        value["state"] = str(self.state)
        value["bounds"] = [
            bound | {"interval": list(bound["interval"]), "state": str(bound["state"])} for bound in value["bounds"]
        ]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Reads `to_dict`'s value."""
        bounds = tuple(
            Bound(**bound | {"interval": tuple(bound["interval"]), "state": State(bound["state"])})
            for bound in value["bounds"]
        )
        return cls(value["name"], State(value["state"]), bounds, value["note"])


def at_most(limit: float, *, what: str, estimate: float, interval: tuple[float, float], n: int) -> Bound:
    """A bound whose allowed side is at or under the limit: passes or fails only with its whole interval."""
    low, high = interval
    if high <= limit:
        return Bound(what, estimate, interval, limit, n, State.PASSES)
    if low > limit:
        return Bound(what, estimate, interval, limit, n, State.FAILS)
    half, distance = (high - low) / 2, abs(estimate - limit)
    # An interval shrinks with the root of the rows; where the estimate lies on the limit no number decides.
    needed = None if distance == 0 else max(n + 1, round(n * (half / distance) ** 2))
    return Bound(what, estimate, interval, limit, n, State.NOT_ASSESSABLE, needed)


def gate(name: str, bounds: Sequence[Bound], *, note: str = "") -> Gate:
    """Fails if one bound fails, passes if all pass (there must be one), and is not assessable otherwise."""
    states = {bound.state for bound in bounds}
    if State.FAILS in states:
        state = State.FAILS
    elif states == {State.PASSES}:
        state = State.PASSES
    else:
        state = State.NOT_ASSESSABLE
    return Gate(name, state, tuple(bounds), note)
