"""Group rows of similar length into batches, so that little of a forward pass is padding."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Cost = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""Cost of batches [B] by their numbers of rows [B] and longest rows [B]; infinite where a batch is not allowed."""


def length_batches(
    lengths: Sequence[int] | NDArray[np.int64], *, max_rows: int, cost: Cost | None = None, longest_first: bool = True
) -> list[NDArray[np.int64]]:
    """Return row indices in batches of up to `max_rows` rows of similar length, each row once.

    Without `cost` every batch but the last is full. With it, the batches of the sorted rows minimise its sum (dynamic
    programming, O(N * max_rows)). Longest first, a batch that does not fit in memory fails at once.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows {max_rows} must be at least 1")
    descending = -np.asarray(lengths, dtype=np.int64)
    order = np.argsort(descending if longest_first else -descending, kind="stable")
    if cost is None:
        return [order[start : start + max_rows] for start in range(0, len(order), max_rows)]
    assert longest_first
    bounds = _cheapest_bounds(-descending[order], max_rows=max_rows, cost=cost)
    return [order[start:end] for start, end in pairwise(bounds)]


def _cheapest_bounds(ordered: NDArray[np.int64], *, max_rows: int, cost: Cost) -> list[int]:
    """Return where the batches of rows in descending length begin, and the last one ends."""
    num_rows = len(ordered)
    total = np.zeros(num_rows + 1)
    start = np.zeros(num_rows + 1, dtype=np.int64)
    for end in range(1, num_rows + 1):
        first = max(0, end - max_rows)
        costs = total[first:end] + cost(np.arange(end - first, 0, -1), ordered[first:end])
        best = int(costs.argmin())
        total[end], start[end] = costs[best], first + best
    bounds = [num_rows]
    while bounds[-1] > 0:
        bounds.append(int(start[bounds[-1]]))
    return bounds[::-1]
