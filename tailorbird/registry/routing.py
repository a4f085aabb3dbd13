"""Between logits and an answer, in evaluation and serving alike: temperature, and which part of a hybrid answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# What `tailorbird.data.rows` names the group of a row that has none; a request that lacks the attribute is the same case.
NO_GROUP = "(none)"


@dataclass(frozen=True)
class Routing:
    """Which of a hybrid's two parts answers a row; the incumbent wherever the rule does not name the candidate.

    Raises ValueError where a field that `by` needs is missing, or one that it does not need is there.
    """

    by: Literal["group", "confidence"]
    column: str | None = None
    """By group: the group column, in a request the attribute, that is looked at."""
    values: tuple[str, ...] = ()
    """By group: the values whose rows the candidate answers."""
    threshold: float | None = None
    """By confidence: the candidate answers where the incumbent's highest probability, after temperature, is lower."""

    def __post_init__(self) -> None:
        if self.by == "group":
            if not self.column or not self.values or self.threshold is not None:
                raise ValueError(f"routing by group takes a column and its values and no threshold, not {self}")
            if NO_GROUP in self.values:
                raise ValueError(f"rows without a group are the incumbent's: {NO_GROUP!r} may not be routed on")
        elif self.by == "confidence":
            if self.threshold is None or self.column is not None or self.values:
                raise ValueError(f"routing by confidence takes a threshold and no column or values, not {self}")
            if not 0 <= self.threshold <= 1:
                raise ValueError(f"routing's threshold is a probability from 0 to 1, not {self.threshold}")
        else:
            raise ValueError(f"routing is by `group` or by `confidence`, not by {self.by!r}")


def routes_to_candidate(
    routing: Routing,
    *,
    groups: Sequence[str | None] | None = None,
    confidences: Sequence[float] | NDArray[Any] | None = None,
) -> NDArray[np.bool_]:
    """Whether the candidate answers each row, [N]; the others are the incumbent's.

    `groups` are the rows' values in the routing's column, None where there is none, and are needed by group;
    `confidences` are the incumbent's, after its temperature, and are needed by confidence. What the rule does not look
    at is ignored. Raises ValueError where what it looks at is missing.
    """
    if routing.by == "group":
        if groups is None:
            raise ValueError(f"routing by group looks at {routing.column!r}; give the rows' values as `groups`")
        return np.fromiter((value in routing.values for value in groups), dtype=np.bool_, count=len(groups))
    if confidences is None:
        raise ValueError("routing by confidence looks at the incumbent's; give them as `confidences`")
    assert routing.threshold is not None
    # In float64, as the threshold is: against a float32 array numpy would round it, and a row on it would turn.
    return ~(np.asarray(confidences, dtype=np.float64) >= routing.threshold)
