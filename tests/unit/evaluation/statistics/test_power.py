"""Tests of power and rows needed against the plain formula and against new simulations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.evaluation.statistics.paired import Comparison, PairedCounts, midp_values
from tailorbird.evaluation.statistics.power import (
    Scenario,
    draw_tables,
    minimum_detectable_effect,
    plain_rows_needed,
    rows_to_detect,
    rule_holds,
    rule_power,
    smallest_detectable,
)


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


def test_the_rows_to_detect_a_gain_reach_it_in_80_percent_of_tests() -> None:
    main = comparison(PairedCounts(1200, 190, 150, 611), standard_error=None)
    needed = rows_to_detect(0.01, main=main, alpha=0.05)
    assert needed.rows is not None
    scenario = Scenario(0.01, main.counts.discordance, main.other_score)
    tables = draw_tables(needed.rows, scenario=scenario, num_draws=20_000, seed=7)
    assert np.mean(midp_values(tables[:, 1], only_other=tables[:, 2]) < 0.05) == pytest.approx(0.8, abs=0.02)
    error = np.sqrt(main.counts.discordance / 2151)
    normal = rows_to_detect(0.01, main=comparison(main.counts, standard_error=error), alpha=0.05)
    assert normal.rows == pytest.approx(needed.rows, rel=0.01)
    assert rows_to_detect(0.0, main=main, alpha=0.05).rows is None


def test_a_reason_is_given_if_no_number_of_rows_is_enough() -> None:
    main = comparison(PairedCounts(600, 100, 80, 220), standard_error=0.015)
    for gain, reason in ((0.0, "not above the minimum"), (0.00001, "more than 10,000,000")):
        needed = rows_to_detect(gain, main=main, alpha=0.05)
        assert needed.rows is None
        assert reason in needed.reason


@pytest.mark.parametrize(("standard_error", "effect"), [(None, 0.028), (0.0, 0.028)])
def test_the_detectable_effect_of_identical_models_is_not_0(standard_error: float | None, effect: float) -> None:
    main = comparison(PairedCounts(80, 0, 0, 20), standard_error=standard_error)
    assert smallest_detectable(main, alpha=0.05) == pytest.approx(effect, abs=0.001)  # one discordant row is assumed
