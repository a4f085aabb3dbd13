"""The routing rule of a hybrid, and the router of rows that evaluation, cost, batches and Python
share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")
IntArray = NDArray[np.int64]

NO_GROUP = "(none)"  # group of rows without a value and of requests without the attribute
PartName = Literal["first", "second"]
"""The parts of a hybrid. In a cascade, `first` is the cheap part; by group, it is the incumbent."""
PARTS: tuple[PartName, PartName] = ("first", "second")


@dataclass(frozen=True)
class Routing:
    """The rule that selects the rows for a hybrid's second part; the first part answers all other
    rows.

    Raises ValueError if a field that `by` needs is missing.
    """

    by: Literal["group", "cascade"]
    column: str | None = None  # by group: column of a row, attribute of a request
    values: tuple[str, ...] = ()  # by group: values of the rows that the second part answers
    threshold: float | None = None
    """Cascade: the second part answers if the confidence of the first part is below the
    threshold."""

    def __post_init__(self) -> None:
        if self.by == "group":
            is_complete = self.column and self.values and NO_GROUP not in self.values
        else:
            is_complete = self.threshold is not None and 0 <= self.threshold <= 1
        if not is_complete:
            raise ValueError(
                f"{self} is not a rule; routing by group needs a column and values other than "
                f"{NO_GROUP!r}, and a cascade needs a threshold from 0 to 1"
            )


def routes_to_second(
    routing: Routing,
    *,
    groups: Sequence[str | None] | None = None,
    confidences: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Return a mask [N] of the rows that the second part answers.

    Routing by group needs `groups`, the values of the routing column (None for a missing value). A
    cascade needs `confidences` of the first part: of a classifier, its highest probability after
    temperature scaling; of `nearest`, the similarity; of a language model, the exponential of the
    mean log-probability of the answer's tokens.
    """
    if routing.by == "group":
        assert groups is not None
        return np.array([value in routing.values for value in groups], dtype=np.bool_)
    assert confidences is not None
    assert routing.threshold is not None
    # Compare in float64. In float32, numpy rounds the threshold, and a row on the threshold may
    # change sides.
    return ~(np.asarray(confidences, dtype=np.float64) >= routing.threshold)


def answer_rows(
    routing: Routing,
    num_rows: int,
    *,
    answer: Callable[[PartName, IntArray], Sequence[T]],
    confidence: Callable[[T], float],
    groups: Sequence[str | None] | None = None,
) -> list[tuple[PartName, T]]:
    """Return the answer to each row, with the part that gave it.

    By group, each part answers the rows of its groups. In a cascade, the first part answers all
    rows, and the second one those on which `confidence` of the first answer is below the threshold.
    `answer` returns the answers of a part to the rows at some indices. It is not called without
    rows: an endpoint is paid per request.
    """
    answers: dict[int, tuple[PartName, T]] = {}

    def ask(name: PartName, rows: IntArray) -> None:
        if rows.size:
            for row, value in zip(rows.tolist(), answer(name, rows), strict=True):
                answers[row] = (name, value)

    if routing.by == "group":
        to_second = routes_to_second(routing, groups=groups)
        ask("first", np.flatnonzero(~to_second))
    else:
        ask("first", np.arange(num_rows))
        confidences = [confidence(answers[row][1]) for row in range(num_rows)]
        to_second = routes_to_second(routing, confidences=confidences)
    ask("second", np.flatnonzero(to_second))
    return [answers[row] for row in range(num_rows)]
