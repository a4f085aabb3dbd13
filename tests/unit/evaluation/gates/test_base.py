"""Tests of a bound that is neither below nor above its limit."""

import pytest

from tailorbird.evaluation.gates.base import Bound, State, at_most


def open_bound(estimate: float) -> Bound:
    bound = at_most(0.05, what="debiased ECE", estimate=estimate, interval=(0.01, 0.09), n=2000)
    assert bound.state is State.NOT_ASSESSABLE
    return bound


def test_the_rows_needed_shrink_the_interval_to_the_distance_from_the_limit() -> None:
    assert open_bound(0.04).rows_needed == 2000 * 4**2


@pytest.mark.parametrize("estimate", [0.05, 0.0504])
def test_an_estimate_close_to_the_limit_has_no_number_of_rows(estimate: float) -> None:
    assert open_bound(estimate).rows_needed is None
