"""Tests of power and rows needed against the plain formula and against new simulations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tailorbird.evaluation.statistics.effect import unseen_rate
from tailorbird.evaluation.statistics.paired import Comparison, PairedCounts, midp_values
from tailorbird.evaluation.statistics.power import (
    Scenario,
    draw_tables,
    minimum_detectable_effect,
    plain_rows_needed,
    power_analysis,
    rows_needed_for_rule,
    rule_holds,
    rule_power,
)

ICD10 = Scenario(gain=0.02, discordance=0.15, incumbent_accuracy=0.66)


def comparison(counts: PairedCounts, *, standard_error: float | None) -> Comparison:
    """Return a comparison in accuracy, or in a bootstrapped metric if `standard_error` is given."""
    ours, theirs = counts.both_right + counts.only_candidate_right, counts.both_right + counts.only_other_right
    return Comparison(
        counts, ours / counts.n, theirs / counts.n, counts.gain, (-0.1, 0.1), 0.5, None, standard_error, counts.n
    )


@pytest.mark.parametrize(("discordance", "rows"), [(0.05, 3924), (0.10, 7849), (0.15, 11773), (0.20, 15698)])
def test_the_plain_formula_gives_the_published_rows_for_a_gain_of_one_point(discordance: float, rows: int) -> None:
    assert plain_rows_needed(0.01, discordance=discordance, alpha=0.05) == rows
    assert minimum_detectable_effect(rows, discordance=discordance, alpha=0.05) == pytest.approx(0.01, rel=1e-3)


def test_rows_needed_for_a_gain_of_0_are_refused() -> None:
    with pytest.raises(ValueError, match="gain is 0"):
        plain_rows_needed(0, discordance=0.1, alpha=0.05)


@pytest.mark.parametrize("n", [12_000, 100_000, 1_000_000])
def test_power_is_one_half_at_any_n_if_the_true_gain_is_the_minimum(n: int) -> None:
    scenario = Scenario(gain=0.01, discordance=0.15, incumbent_accuracy=0.66)
    assert rule_power(n, scenario=scenario, minimum_gain=0.01, alpha=0.05) == pytest.approx(0.5, abs=0.03)


def test_the_rows_needed_give_a_power_of_80_percent_on_new_draws() -> None:
    needed = rows_needed_for_rule(ICD10, minimum_gain=0.01, alpha=0.05)
    assert needed.rows is not None
    new_draws = draw_tables(needed.rows, scenario=ICD10, num_draws=40_000, seed=7)
    assert np.mean(rule_holds(new_draws, minimum_gain=0.01, alpha=0.05)) == pytest.approx(0.8, abs=0.02)
    assert f"{needed.rows:,} rows" in needed.reason
    assert rule_power(needed.rows * 9 // 10, scenario=ICD10, minimum_gain=0.01, alpha=0.05) < 0.8


def test_the_whole_rule_needs_more_rows_than_the_plain_formula_near_the_minimum_gain() -> None:
    scenario = Scenario(gain=0.011, discordance=0.15, incumbent_accuracy=0.66)
    needed = rows_needed_for_rule(scenario, minimum_gain=0.01, alpha=0.05)
    assert needed.rows is not None
    assert needed.rows > 5 * plain_rows_needed(0.011, discordance=0.15, alpha=0.05)


@pytest.mark.parametrize(("gain", "reason"), [(0.01, "not above the minimum"), (0.01001, "more than 10,000,000")])
def test_a_reason_is_given_if_no_number_of_rows_is_enough(gain: float, reason: str) -> None:
    needed = rows_needed_for_rule(Scenario(gain, 0.15, 0.66), minimum_gain=0.01, alpha=0.05)
    assert needed.rows is None
    assert reason in needed.reason


@settings(deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_a_scenario_is_always_a_distribution_with_its_gain(gain: float, discordance: float, accuracy: float) -> None:
    cells = Scenario(gain, discordance, accuracy).probabilities()
    assert cells.min() >= 0
    assert cells.sum() == pytest.approx(1)
    assert cells[1] - cells[2] == pytest.approx(gain)


def test_equal_models_satisfy_the_rule_at_most_at_half_of_alpha() -> None:
    for n, discordance in [(300, 0.2), (2151, 0.15), (5000, 0.05)]:
        tables = draw_tables(n, scenario=Scenario(0.0, discordance, 0.7), num_draws=40_000, seed=n)
        # With 40,000 draws, three standard errors of a rate of 0.05 are 0.0033.
        assert np.mean(rule_holds(tables, minimum_gain=0.0, alpha=0.05)) <= 0.025 + 0.0033
        assert np.mean(rule_holds(tables, minimum_gain=0.01, alpha=0.05)) <= 0.025 + 0.0033
        assert np.mean(midp_values(tables[:, 1], only_other=tables[:, 2]) < 0.05) <= 0.05 + 0.0033


def test_power_for_accuracy_is_simulated_at_the_observed_discordance() -> None:
    main = comparison(PairedCounts(1200, 190, 150, 611), standard_error=None)
    scenario = Scenario(0.02, main.counts.discordance, main.other_score)
    size = power_analysis(main, expected_gain=0.02, minimum_gain=0.01, alpha=0.05)
    assert size.power_at_expected_gain == rule_power(2151, scenario=scenario, minimum_gain=0.01, alpha=0.05)
    assert size.needed == rows_needed_for_rule(scenario, minimum_gain=0.01, alpha=0.05)
    assert size.minimum_detectable_effect == minimum_detectable_effect(
        2151, discordance=main.counts.discordance, alpha=0.05
    )


def test_power_from_a_standard_error_agrees_with_simulated_power() -> None:
    counts = PairedCounts(1200, 190, 150, 611)
    exact = power_analysis(comparison(counts, standard_error=None), expected_gain=0.02, minimum_gain=0.01, alpha=0.05)
    error = np.sqrt(counts.discordance / counts.n)
    normal = power_analysis(comparison(counts, standard_error=error), expected_gain=0.02, minimum_gain=0.01, alpha=0.05)
    assert normal.minimum_detectable_effect == pytest.approx(exact.minimum_detectable_effect)
    assert normal.power_at_expected_gain == pytest.approx(exact.power_at_expected_gain, abs=0.02)
    assert normal.needed.rows is not None
    assert normal.needed.rows == pytest.approx(exact.needed.rows, rel=0.05)


@pytest.mark.parametrize(("expected", "minimum"), [(0.02, 0.0), (0.02, 0.01), (0.03, 0.025), (0.05, 0.01)])
def test_the_rows_needed_from_a_standard_error_give_a_power_of_80_percent(expected: float, minimum: float) -> None:
    counts = PairedCounts(600, 100, 80, 220)
    first = power_analysis(
        comparison(counts, standard_error=0.015), expected_gain=expected, minimum_gain=minimum, alpha=0.05
    )
    assert first.needed.rows is not None
    n = first.needed.rows
    grown = comparison(PairedCounts(n, 0, 0, 0), standard_error=0.015 * np.sqrt(counts.n / n))
    power = power_analysis(grown, expected_gain=expected, minimum_gain=minimum, alpha=0.05).power_at_expected_gain
    assert power == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize(("expected", "reason"), [(0.01, "not above the minimum"), (0.010001, "more than 10,000,000")])
def test_a_reason_is_given_if_no_number_of_rows_is_enough_with_a_standard_error(expected: float, reason: str) -> None:
    main = comparison(PairedCounts(600, 100, 80, 220), standard_error=0.015)
    needed = power_analysis(main, expected_gain=expected, minimum_gain=0.01, alpha=0.05).needed
    assert needed.rows is None
    assert reason in needed.reason


# With a bootstrap, the unseen rate of 100 rows is 3.6%, and one discordant row is assumed.
@pytest.mark.parametrize(("standard_error", "effect"), [(None, 0.028), (0.0, 0.0446)])
def test_the_detectable_effect_of_identical_models_is_not_0(standard_error: float | None, effect: float) -> None:
    main = comparison(PairedCounts(80, 0, 0, 20), standard_error=standard_error)
    size = power_analysis(main, expected_gain=0.02, minimum_gain=0.01, alpha=0.05)
    assert size.minimum_detectable_effect == pytest.approx(effect, abs=0.001)


def test_power_with_few_rows_accounts_for_the_unseen_rate() -> None:
    main = comparison(PairedCounts(90, 2, 1, 7), standard_error=0.01)
    size = power_analysis(main, expected_gain=0.03, minimum_gain=0.01, alpha=0.05)
    reach = unseen_rate(100, alpha=0.05)
    assert reach == pytest.approx(0.0362, abs=1e-4)  # more than 1.96 standard errors
    assert size.power_at_expected_gain == pytest.approx(norm.sf((reach - 0.03) / 0.01))
    assert size.minimum_detectable_effect == pytest.approx(reach + norm.ppf(0.8) * 0.01)
    assert size.needed.rows is not None
    rows, error = size.needed.rows, 0.01 * (100 / size.needed.rows) ** 0.5
    least = max(norm.ppf(0.975) * error, unseen_rate(rows, alpha=0.05), 0.01)
    assert norm.sf((least - 0.03) / error) >= 0.8
