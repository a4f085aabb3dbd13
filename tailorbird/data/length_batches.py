"""Group rows of similar length into batches to reduce padding."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Cost = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""Costs [B] of batches from their numbers of rows [B] and longest rows [B]; infinite if a batch is
not allowed."""


def pass_cost(*, max_tokens: float = math.inf, fixed: int = 1, per_token: int = 0) -> Cost:
    """Return the cost of forward passes, by their tokens with padding. Passes of several rows have
    `max_tokens`."""

    def cost(num_rows: NDArray[np.int64], longest: NDArray[np.int64]) -> NDArray[np.float64]:
        tokens = num_rows * longest
        too_large = (tokens > max_tokens) & (num_rows > 1)
        return np.where(too_large, np.inf, fixed + per_token * tokens).astype(np.float64)

    return cost


def length_batches(
    lengths: Sequence[int] | NDArray[np.int64],
    *,
    max_rows: int,
    cost: Cost | None = None,
    longest_first: bool = True,
) -> list[NDArray[np.int64]]:
    """Return batches of row indices, each of up to `max_rows` rows of similar length. Each row is
    in one batch.

    Without `cost`, every batch but the last is full. With `cost`, the rows are sorted by length and
    divided so that the sum of the costs is minimal (dynamic programming, O(N * max_rows)). With
    `longest_first`, a batch that does not fit in memory fails at the start.
    """
    descending = -np.asarray(lengths, dtype=np.int64)
    order = np.argsort(descending if longest_first else -descending, kind="stable")
    if cost is None:
        return [order[start : start + max_rows] for start in range(0, len(order), max_rows)]
    assert longest_first
    bounds = _cheapest_bounds(-descending[order], max_rows=max_rows, cost=cost)
    return [order[start:end] for start, end in pairwise(bounds)]


def _cheapest_bounds(ordered: NDArray[np.int64], *, max_rows: int, cost: Cost) -> list[int]:
    """Return the start of each batch and the end of the last, as indices of rows in descending
    length."""
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
