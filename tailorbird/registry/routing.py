"""Routing of a hybrid: which of its two parts answers a row. Shared by evaluation and serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

NO_GROUP = "(none)"  # group of rows without a value, and of requests without the attribute


@dataclass(frozen=True)
class Routing:
    """Rule by which the candidate answers a row; the incumbent answers all others.

    Raises ValueError for a missing field that `by` needs, or a field that it does not need.
    """

    by: Literal["group", "confidence"]
    column: str | None = None  # by group: the column; in a request, the attribute
    values: tuple[str, ...] = ()  # by group: values of the candidate's rows
    threshold: float | None = None
    """By confidence: the candidate answers if the incumbent's highest probability, after temperature, is lower."""

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
    routing: Routing, *, groups: Sequence[str | None] | None = None, confidences: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Return the mask [N] of the rows that the candidate answers.

    Routing by group needs `groups`, the rows' values in the routing's column (None: no value); routing by confidence
    needs the incumbent's `confidences` after temperature. Raises ValueError if they are missing.
    """
    if routing.by == "group":
        if groups is None:
            raise ValueError(f"routing by group looks at {routing.column!r}; give the rows' values as `groups`")
        return np.fromiter((value in routing.values for value in groups), dtype=np.bool_, count=len(groups))
    if confidences is None:
        raise ValueError("routing by confidence looks at the incumbent's; give them as `confidences`")
    assert routing.threshold is not None
    # In float64 like the threshold: numpy would round it to float32, and a row on the threshold would change sides.
    return ~(np.asarray(confidences, dtype=np.float64) >= routing.threshold)
