"""Tests of the confidence limit for an event that occurs in no row, and of the smallest possible p
value."""

from dataclasses import replace

import pytest

from tailorbird.evaluation.statistics.effect import Effect, unseen_rate, with_least_p, with_unseen


def test_an_event_at_the_unseen_rate_occurs_in_no_row_with_probability_one_in_forty() -> None:
    for n in (1, 30, 2000):
        assert (1 - unseen_rate(n, alpha=0.05)) ** n == pytest.approx(0.025)
    assert unseen_rate(100, alpha=0.05) == pytest.approx(0.0362, abs=1e-4)


def test_a_p_value_is_at_least_that_of_the_sign_flips_of_the_differing_units() -> None:
    effect = Effect(0.1, (0.02, 0.18), 0.01, 0.04)
    five = with_least_p(effect, num_differing=5, alpha=0.05)
    assert (five.p_value, five.interval) == (0.0625, (0.0, 0.18))
    assert with_least_p(effect, num_differing=5, alpha=0.1) == replace(effect, p_value=0.0625)
    assert with_least_p(effect, num_differing=20, alpha=0.05) == effect
    assert with_least_p(effect, num_differing=0, alpha=0.05).p_value == 1


def test_an_interval_reaches_the_unseen_rate_to_both_sides_of_the_gain() -> None:
    reach = unseen_rate(100, alpha=0.05)
    narrow, wide = Effect(0.1, (0.09, 0.11), 0.01, 0.005), Effect(0.1, (0.0, 0.2), 0.01, 0.05)
    assert with_unseen(narrow, num_units=100, alpha=0.05).interval == pytest.approx(
        (0.1 - reach, 0.1 + reach)
    )
    assert with_unseen(wide, num_units=100, alpha=0.05) == wide
    assert with_unseen(narrow, num_units=1, alpha=0.05).interval == pytest.approx(
        (0.1 - 0.975, 1.0)
    )
