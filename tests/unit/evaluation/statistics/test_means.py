"""Tests of the interval and the sign-flip test of means against scipy and simulated true
effects."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tailorbird.evaluation.statistics.effect import Effect, unseen_rate, with_least_p, with_unseen
from tailorbird.evaluation.statistics.means import likelihood_interval, mean_effect


def test_the_interval_of_the_mean_of_many_rows_equals_scipys_t_interval() -> None:
    generator = np.random.default_rng(6)
    first = generator.random(400)
    second = generator.random(400) * 0.9
    effect = mean_effect(first, other_scores=second, alpha=0.05)
    expected = stats.ttest_rel(first, second)
    assert effect.gain == pytest.approx(np.mean(first - second))
    assert effect.interval == pytest.approx(
        expected.confidence_interval(), abs=0.02 * effect.standard_error
    )
    assert effect.standard_error == pytest.approx(stats.sem(first - second))


def test_the_likelihood_interval_of_equal_losses_is_that_of_a_binomial_share() -> None:
    """k losses of 1 among n rows: the limits solve n log-likelihood ratio = threshold of F(1, n -
    1) / 2."""
    losses = np.repeat([0.0, -1.0], [95, 5])
    low, high = likelihood_interval(losses, alpha=0.05)
    threshold = stats.f.isf(0.05, 1, 99) / 2

    def ratio(share: float) -> float:
        return float(5 * np.log(0.05 / share) + 95 * np.log(0.95 / (1 - share)))

    assert ratio(-low) == pytest.approx(threshold, abs=1e-6)
    assert low < -0.05 < high < 0


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25])
def test_the_p_value_of_a_mean_equals_scipys_exact_sign_flip_test(shift: float) -> None:
    generator = np.random.default_rng(8)
    first = generator.random(12) + shift
    second = generator.random(12)
    exact = stats.permutation_test(
        (first - second,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    # With 10,000 flips, three standard errors of p = 0.5 are 0.015.
    assert mean_effect(first, other_scores=second, alpha=0.05).p_value == pytest.approx(
        exact.pvalue, abs=0.015
    )


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60))
def test_swapping_the_models_changes_only_the_sign_of_a_mean_effect(
    rows: list[tuple[int, int]],
) -> None:
    first, second = np.array(rows, dtype=np.float64).T / 4
    effect = mean_effect(first, other_scores=second, alpha=0.05)
    swapped = mean_effect(second, other_scores=first, alpha=0.05)
    assert (swapped.gain, swapped.p_value) == (-effect.gain, effect.p_value)
    assert swapped.interval == pytest.approx((-effect.interval[1], -effect.interval[0]), abs=1e-9)
    assert 0 < effect.p_value <= 1


def test_an_event_at_the_unseen_rate_occurs_in_no_row_with_probability_one_in_forty() -> None:
    for n in (1, 30, 2000):
        assert (1 - unseen_rate(n, alpha=0.05)) ** n == pytest.approx(0.025)
    assert unseen_rate(100, alpha=0.05) == pytest.approx(0.0362, abs=1e-4)


def test_a_p_value_is_at_least_that_of_the_sign_flips_of_the_differing_units() -> None:
    effect = Effect(0.1, (0.02, 0.18), 0.01, 0.04)
    assert with_least_p(effect, num_differing=5, alpha=0.1) == replace(effect, p_value=0.0625)
    assert with_least_p(effect, num_differing=0, alpha=0.05).p_value == 1


def test_an_interval_reaches_the_unseen_rate_to_both_sides_of_the_gain() -> None:
    reach = unseen_rate(100, alpha=0.05)
    narrow = Effect(0.1, (0.09, 0.11), 0.01, 0.005)
    wide = Effect(0.1, (0.0, 0.2), 0.01, 0.05)
    assert with_unseen(narrow, num_units=100, alpha=0.05).interval == pytest.approx(
        (0.1 - reach, 0.1 + reach)
    )
    assert with_unseen(wide, num_units=100, alpha=0.05) == wide
    assert with_unseen(narrow, num_units=1, alpha=0.05).interval == pytest.approx(
        (0.1 - 0.975, 1.0)
    )
