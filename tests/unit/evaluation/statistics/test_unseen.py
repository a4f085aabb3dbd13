"""Tests of the confidence limit for an event that occurs in no row."""

import pytest

from tailorbird.evaluation.statistics.effect import at_least_unseen, unseen_rate


def test_an_event_at_the_unseen_rate_occurs_in_no_row_with_probability_one_in_forty() -> None:
    for n in (1, 30, 2000):
        assert (1 - unseen_rate(n, alpha=0.05)) ** n == pytest.approx(0.025)
    assert unseen_rate(100, alpha=0.05) == pytest.approx(0.0362, abs=1e-4)


def test_only_narrow_intervals_are_widened() -> None:
    low, high = at_least_unseen((0.1, 0.1), estimate=0.1, n=100, alpha=0.05)
    assert (low, high) == pytest.approx((0.1 - 0.0362, 0.1 + 0.0362), abs=1e-4)
    assert at_least_unseen((-0.5, 0.5), estimate=0.1, n=100, alpha=0.05) == (-0.5, 0.5)
