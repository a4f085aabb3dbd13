"""Length batches contain every row once, have little padding, and minimise the cost."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.length_batches import length_batches

BATCH_COST = 50


def test_batches_have_rows_of_similar_length_in_order_of_length() -> None:
    lengths = [3, 1, 2, 1, 5]
    batches = length_batches(lengths, max_rows=2, longest_first=False)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 0], [4]]
    batches = length_batches(lengths, max_rows=2)
    assert [batch.tolist() for batch in batches] == [[4, 0], [2, 1], [3]]
    batches = length_batches(lengths, max_rows=2, cost=cost)
    assert sorted(map(sorted, batches)) == [[0, 2], [1, 3], [4]]


def cost(num_rows: np.ndarray, longest: np.ndarray) -> np.ndarray:
    return np.asarray(BATCH_COST + num_rows * longest, dtype=np.float64)


def total_cost(batches: list[list[int]]) -> int:
    return sum(BATCH_COST + len(batch) * max(batch) for batch in batches)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=7))
def test_batches_have_the_lowest_cost_of_all_divisions_of_the_sorted_rows(
    lengths: list[int],
) -> None:
    ordered = sorted(lengths, reverse=True)
    cheapest = min(
        total_cost(
            [ordered[start:end] for start, end in itertools.pairwise((0, *cuts, len(ordered)))]
        )
        for number in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), number)
    )
    batches = length_batches(lengths, max_rows=len(lengths), cost=cost)
    assert total_cost([[lengths[row] for row in batch] for batch in batches]) == cheapest


def test_batches_of_infinite_cost_are_avoided() -> None:
    def at_most_ten_tokens(num_rows: np.ndarray, longest: np.ndarray) -> np.ndarray:
        return np.where((num_rows > 1) & (num_rows * longest > 10), np.inf, 1.0)

    batches = length_batches([4, 20, 5, 5, 2, 2, 2], max_rows=7, cost=at_most_ten_tokens)
    assert len(batches) == 4
    assert batches[0].tolist() == [1]
