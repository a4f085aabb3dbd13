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


def counts_of(
    chance: np.random.Generator, *, correlation: float, days: int = 7, rows: int = 200
) -> np.ndarray:
    """Return counts of days whose shares have a Dirichlet distribution with this intraday
    correlation."""
    shares = (
        chance.dirichlet(SHARES * (1 / correlation - 1), days)
        if correlation
        else np.tile(SHARES, (days, 1))
    )
    return np.array([chance.multinomial(rows, of_day) for of_day in shares])


@pytest.mark.parametrize("correlation", [0.0, 0.01, 0.05])
def test_the_correlation_of_counts_is_nearly_unbiased(correlation: float) -> None:
    chance = np.random.default_rng(1)
    measured = [
        variance_of_counts(counts_of(chance, correlation=correlation)).correlation
        for _ in range(400)
    ]
    assert np.mean(measured) == pytest.approx(correlation, abs=0.003, rel=0.12)


def test_a_window_of_one_day_measures_nothing() -> None:
    assert variance_of_counts(np.array([[5, 5], [0, 0]])) == DayVariance(0.0, 0)
    assert variance_of_counts(np.array([[5, 0], [7, 0]])) == DayVariance(0.0, 1)  # one class only


def test_measured_days_replace_the_usual_correlation() -> None:
    days = np.repeat(np.arange(7), 101)
    effects = [
        design_effect(days, [DayVariance(0.0, 6)] * windows).effect for windows in (0, 1, 100)
    ]
    assert effects[0] == pytest.approx(1 + 100 * USUAL_CORRELATION)
    assert effects[0] > effects[1] > effects[2] > 1
    assert design_effect(days, [DayVariance(-0.5, 6)] * 9).effect == 1
    assert design_effect(days, [DayVariance(0.1, 6)] * 100).effect == pytest.approx(
        1 + 100 * 0.1, rel=0.05
    )


def test_simulated_counts_have_the_design_effect() -> None:
    chance, size = np.random.default_rng(3), 700
    design = DesignEffect(4.0, 1e6)
    shares = varied_shares(chance, np.tile(SHARES, (20_000, 1)), size=size, design=design)
    counts = chance.multinomial(size, shares)
    effects = counts.var(0) / (size * SHARES * (1 - SHARES))
    assert effects == pytest.approx(np.full(4, 4.0), rel=0.05)
    assert counts.mean(0) / size == pytest.approx(SHARES, abs=0.005)


def test_without_a_design_effect_the_shares_do_not_vary() -> None:
    drawn = varied_shares(
        np.random.default_rng(3), SHARES[None], size=700, design=DesignEffect(1.0, 10.0)
    )
    assert drawn[0] == pytest.approx(SHARES, abs=1e-3)


def test_an_uncertain_effect_has_longer_tails() -> None:
    def tail(freedom: float) -> float:
        drawn = varied_shares(
            np.random.default_rng(3),
            np.tile(SHARES, (20_000, 1)),
            size=700,
            design=DesignEffect(4.0, freedom),
        )
        return float(np.quantile(np.abs(drawn[:, 0] - SHARES[0]), 0.999))

    assert tail(6) > 1.5 * tail(1e6)
