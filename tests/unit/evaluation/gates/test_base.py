"""Tests of bounds, by intervals that are given."""

import numpy as np
import pytest

from tailorbird.evaluation.gates.base import Bound, Estimate, State, at_most, no_loss


def loss(value: float, low: float, high: float, *, num_losses: int = 1) -> Bound:
    """Return the bound on a loss with a limit of 5 points."""
    return no_loss(
        0.05, what="loss", loss=Estimate(value, (low, high), 400, 0.05), num_losses=num_losses
    )


def test_the_rows_needed_shrink_the_interval_to_the_distance_from_the_limit() -> None:
    # A side of 0.05, or of 0.04, shrinks to 0.01.
    for estimate, factor in ((0.04, 5), (0.06, 4)):
        bound = at_most(0.05, what="ECE", estimate=estimate, interval=(0.02, 0.09), n=2000)
        assert (bound.state, bound.rows_needed) == (State.NOT_ASSESSABLE, 2000 * factor**2)


@pytest.mark.parametrize(
    ("estimate", "low", "high", "state"),
    [
        (0.01, -0.03, 0.05, State.PASSES),
        (0.03, 0.01, 0.05, State.PASSES),  # significant, but within the limit
        (0.06, 0.01, 0.11, State.FAILS),  # the interval contains the limit
        (0.06, -0.01, 0.13, State.NOT_ASSESSABLE),
        (0.04, 0.01, 0.07, State.NOT_ASSESSABLE),
    ],
)
def test_a_loss_fails_if_it_is_significant_and_measured_at_the_limit(
    estimate: float, low: float, high: float, state: State
) -> None:
    bound = loss(estimate, low, high)
    assert bound.state is state
    assert (bound.rows_needed is not None) == (state is State.NOT_ASSESSABLE)


def test_a_loss_must_be_clearer_among_more_losses() -> None:
    assert loss(0.06, 0.01, 0.11, num_losses=10).state is State.NOT_ASSESSABLE
    alone, among_ten = (loss(0.0, -0.05, 0.05, num_losses=num).detects for num in (1, 10))
    assert alone is not None
    assert among_ten is not None
    assert 0.07 < alone < among_ten < 0.15


def test_the_rows_needed_of_a_loss_decide_it_at_the_same_estimate() -> None:
    # Half of the width is then 0.04, so that it passes, or 0.06, so that it fails.
    assert loss(0.01, -0.07, 0.09).rows_needed == 400 * 2**2
    assert loss(0.06, -0.06, 0.18).rows_needed == 400 * 2**2


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_the_stated_loss_is_found_in_80_percent_of_tests(noise: float) -> None:
    """Of 400 rows, some get worse and as many better by chance; others lose all of their score."""
    generator = np.random.default_rng(0)
    error = np.sqrt(noise / 400)
    stated = loss(0.0, -1.96 * error, 1.96 * error).detects
    assert stated is not None
    num_failed = 0
    for _ in range(2_000):
        chances = (stated + noise / 2, noise / 2, 1 - stated - noise)
        differences = generator.choice([1.0, -1.0, 0.0], 400, p=chances)
        mean = float(differences.mean())
        half = 1.96 * float(differences.std()) / 20
        num_failed += loss(mean, mean - half, mean + half).state is State.FAILS
    assert num_failed / 2_000 == pytest.approx(0.8, abs=0.06)
