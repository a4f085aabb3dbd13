import numpy as np
import pytest

from tailorbird.monitoring.day_variance import (
    USUAL_CORRELATION,
    DayVariance,
    DesignEffect,
    design_effect,
    variance_of_counts,
    varied_shares,
)

SHARES = np.array([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("correlation", [0.0, 0.01, 0.05])
def test_the_correlation_of_counts_is_nearly_unbiased(correlation: float) -> None:
    """The shares of the days have a Dirichlet distribution with this intraday correlation."""
    chance = np.random.default_rng(1)
    measured = []
    for _ in range(400):
        shares = np.tile(SHARES, (7, 1))
        if correlation:
            shares = chance.dirichlet(SHARES * (1 / correlation - 1), 7)
        counts = chance.multinomial(200, shares)
        measured.append(variance_of_counts(counts).correlation)
    assert np.mean(measured) == pytest.approx(correlation, abs=0.003, rel=0.12)


def test_a_window_of_one_class_measures_nothing() -> None:
    assert variance_of_counts(np.array([[5, 0], [7, 0]])) == DayVariance(0.0, 1)


def test_measured_days_replace_the_usual_correlation() -> None:
    days = np.repeat(np.arange(7), 101)

    def effect(correlation: float, windows: int) -> float:
        return design_effect(days, [DayVariance(correlation, 6)] * windows).effect

    assert effect(0.0, 0) == pytest.approx(1 + 100 * USUAL_CORRELATION)
    assert effect(0.0, 0) > effect(0.0, 1) > effect(0.0, 100) > 1
    assert effect(-0.5, 9) == 1
    assert effect(0.1, 100) == pytest.approx(1 + 100 * 0.1, rel=0.05)


def drawn(effect: float, freedom: float) -> np.ndarray:
    generator = np.random.default_rng(3)
    design = DesignEffect(effect, freedom)
    return varied_shares(generator, np.tile(SHARES, (20_000, 1)), size=700, design=design)


def test_simulated_counts_have_the_design_effect() -> None:
    counts = np.random.default_rng(4).multinomial(700, drawn(4.0, 1e6))
    effects = counts.var(0) / (700 * SHARES * (1 - SHARES))
    assert effects == pytest.approx(np.full(4, 4.0), rel=0.05)
    assert counts.mean(0) / 700 == pytest.approx(SHARES, abs=0.005)
    assert drawn(1.0, 10.0)[0] == pytest.approx(SHARES, abs=1e-3)


def test_an_uncertain_effect_has_longer_tails() -> None:
    certain, uncertain = (
        np.quantile(np.abs(drawn(4.0, freedom)[:, 0] - SHARES[0]), 0.999) for freedom in (1e6, 6)
    )
    assert uncertain > 1.5 * certain
