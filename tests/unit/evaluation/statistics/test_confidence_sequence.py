"""Confidence sequences of a mean difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc, betaln

from tailorbird.evaluation.statistics.confidence_sequence import (
    SHAPE,
    confidence_sequence,
    log_wealth,
)

VALUES = np.array([-1.0, 0.0, 1.0])


def sample(*, losses: int, ties: int, wins: int) -> np.ndarray:
    return np.repeat(VALUES, (losses, ties, wins))


@given(st.lists(st.floats(-1, 1, allow_nan=False), max_size=50))
def test_the_interval_contains_the_mean_and_is_mirrored_with_the_sign(values: list[float]) -> None:
    differences = np.array(values)
    low, high = confidence_sequence(differences, alpha=0.05)
    mirrored = confidence_sequence(-differences, alpha=0.05)
    assert -1 <= low <= high <= 1
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    if values:
        assert low - 1e-9 <= differences.mean() <= high + 1e-9


@pytest.mark.parametrize(("wins", "losses"), [(30, 10), (300, 200), (1_000, 900), (10, 30)])
def test_the_wealth_against_no_gain_is_that_of_a_beta_mixture_of_win_rates(
    wins: int, losses: int
) -> None:
    wealth = log_wealth(VALUES, counts=np.array([losses, 77, wins]), mean=0.0)
    above = np.log(betainc(losses + SHAPE, wins + SHAPE, 0.5))  # the mass of win rates above 1/2
    mixture = betaln(wins + SHAPE, losses + SHAPE) - betaln(SHAPE, SHAPE) + above
    assert wealth == pytest.approx(mixture + (wins + losses + 1) * np.log(2), abs=1e-6)


@pytest.mark.parametrize("past", [(), (1.0, -0.5, 0.25), (-1.0, -1.0, 0.5), (0.125,) * 300])
@pytest.mark.parametrize(("mean", "size"), [(0.0, 1.0), (0.0, 0.25), (0.2, 0.5)])
def test_the_wealth_is_constant_on_average_if_the_mean_is_as_assumed(
    past: tuple[float, ...], mean: float, size: float
) -> None:
    values = np.array([*past, mean + size, mean - size])
    counts = np.array([[1] * len(past) + list(last) for last in ((0, 0), (1, 0), (0, 1))])
    now, won, lost = np.exp(log_wealth(values, counts=counts, mean=mean))
    assert (won + lost) / 2 == pytest.approx(now)


def test_an_interval_excludes_0_if_and_only_if_the_wealth_against_no_gain_reaches_the_level() -> (
    None
):
    for wins in range(20, 60):
        counts = {"losses": 20, "ties": 60, "wins": wins}
        wealth = log_wealth(VALUES, counts=np.array(list(counts.values())), mean=0.0)
        low, _ = confidence_sequence(sample(**counts), alpha=0.05)
        assert (low > 0) == (wealth >= np.log(2 / 0.05))


def test_values_outside_the_range_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"differences range from -1.5 to 0.5; they must be in \[-1, 1\]"
    ):
        confidence_sequence(np.array([0.5, -1.5]), alpha=0.05)
