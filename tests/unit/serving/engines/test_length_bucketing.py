"""How a batch is cut into passes."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.length_bucketing import PASS_TOKENS, cut_by_length

lengths = st.lists(st.integers(1, 64), max_size=60)


def _cost(passes: list[list[int]]) -> int:
    return sum(PASS_TOKENS + len(part) * max(part) for part in passes)


@given(lengths, st.integers(1, 16))
def test_every_row_is_in_one_pass_and_no_pass_is_too_large(given_lengths: list[int], max_rows: int) -> None:
    passes = cut_by_length(np.array(given_lengths, dtype=np.int64), max_rows=max_rows)
    assert sorted(row for part in passes for row in part) == list(range(len(given_lengths)))
    assert all(0 < len(part) <= max_rows for part in passes)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=7))
def test_no_other_cut_of_the_sorted_rows_is_cheaper(given_lengths: list[int]) -> None:
    ordered = sorted(given_lengths, reverse=True)
    cheapest = min(
        _cost([ordered[start:end] for start, end in itertools.pairwise((0, *cuts, len(ordered)))])
        for number in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), number)
    )
    passes = cut_by_length(np.array(given_lengths), max_rows=len(given_lengths))
    assert _cost([[given_lengths[row] for row in part] for part in passes]) == cheapest


def test_rows_of_one_length_go_through_together() -> None:
    assert [len(part) for part in cut_by_length(np.full(64, 12), max_rows=64)] == [64]
