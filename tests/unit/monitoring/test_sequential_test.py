import functools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from tailorbird.monitoring.sequential_test import (
    SHAPE,
    Decision,
    UnitDifferences,
    decide_challenger,
    discordant_needed,
    log_e_value,
    log_e_value_of_counts,
    units_needed,
)

ALPHA, GAIN = 0.05, 0.03


def units(wins: int, losses: int, *, ties: int = 0, num_subjects: int = 0) -> UnitDifferences:
    values = np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])
    return UnitDifferences(values, num_subjects=num_subjects, num_answers=len(values))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 1), (1, 3), (40, 20), (20, 40)])
def test_the_e_value_equals_the_numerical_integral(wins: int, losses: int) -> None:
    def bet(p: float) -> float:
        return float(2 * beta.pdf(p, SHAPE, SHAPE) * (2 * p) ** wins * (2 * (1 - p)) ** losses)

    expected = quad(bet, 0.5, 1)[0]
    assert math.exp(log_e_value_of_counts(wins, losses)) == pytest.approx(expected, rel=1e-3)
    assert math.exp(log_e_value(units(wins, losses, ties=7).values)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("past", [(), (1.0, -0.5, 0.25), (-1.0, -1.0, 0.5), (0.125,) * 300])
@pytest.mark.parametrize("size", [1.0, 0.25])
def test_under_the_null_hypothesis_the_e_value_is_constant_on_average(past: tuple[float, ...], size: float) -> None:
    now, won, lost = (math.exp(log_e_value(np.array([*past, *next_]))) for next_ in ((), (size,), (-size,)))
    assert (won + lost) / 2 == pytest.approx(now)


def test_the_order_of_units_does_not_matter() -> None:
    values = np.random.default_rng(1).uniform(-1, 1, 50)
    assert log_e_value(values) == pytest.approx(log_e_value(values[::-1]))


def test_decisions_after_every_unit_err_in_at_most_alpha_of_the_runs() -> None:
    chance = np.random.default_rng(1979)
    alarms, runs, length = 0, 300, 200
    for _ in range(runs):
        values = chance.choice([-1.0, -0.5, 0.0, 0.5, 1.0], length)
        alarms += any(log_e_value(values[:num]) >= -math.log(ALPHA) for num in range(4, length + 1, 4))
    assert alarms / runs < ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_the_units_needed_give_a_power_of_eighty_percent() -> None:
    chance, needed = np.random.default_rng(7), discordant_needed(0.6, alpha=ALPHA)
    assert 200 < needed < 300
    num_proven, log_e_value = 0, functools.cache(log_e_value_of_counts)
    for _ in range(500):
        wins = np.cumsum(chance.random(needed) < 0.6)
        num_proven += any(log_e_value(int(w), n - int(w)) >= -math.log(ALPHA) for n, w in enumerate(wins, 1))
    assert num_proven / 500 == pytest.approx(0.8, abs=0.06)
    assert units_needed(0.04, variance=0.2, alpha=ALPHA) == 5 * needed  # a fifth of the units differ, 60 to 40


def test_more_units_are_needed_for_a_smaller_gain_or_a_larger_variance() -> None:
    needed = [units_needed(gain, variance=0.2, alpha=ALPHA) for gain in (0.1, 0.03, 0.01, 0.001)]
    assert needed == sorted(needed)
    assert units_needed(GAIN, variance=0.1, alpha=ALPHA) < units_needed(GAIN, variance=0.3, alpha=ALPHA)
    assert units_needed(0.5, variance=0.2, alpha=ALPHA) > 0  # a gain above the variance
    with pytest.raises(ValueError, match="gain is 0"):
        units_needed(0.0, variance=0.2, alpha=ALPHA)


def test_a_challenger_is_promoted_stopped_or_continued() -> None:
    promoted = decide_challenger(units(60, 20, num_subjects=30), groups={}, alpha=ALPHA, gain=GAIN)
    assert (promoted.decision, promoted.reason) == (
        Decision.PROMOTE,
        "proven better: +50.0 points over 30 subjects and 50 requests (80 labelled answers)",
    )
    stopped = decide_challenger(units(20, 60), groups={}, alpha=ALPHA, gain=GAIN)
    assert (stopped.decision, stopped.reason) == (
        Decision.STOP,
        "proven worse: -50.0 points over 80 requests (80 labelled answers) (alpha 0.05)",
    )


def test_to_continue_names_the_units_and_how_many_more_are_needed() -> None:
    continued = decide_challenger(units(30, 25, ties=500, num_subjects=555), groups={}, alpha=ALPHA, gain=GAIN)
    needed = units_needed(GAIN, variance=60 / 575, alpha=ALPHA)
    assert continued.decision is Decision.CONTINUE
    assert continued.reason == (
        "+0.9 points over 555 subjects (555 labelled answers); proving a true difference of +3 points takes about "
        f"{needed:,} units (power 0.8): {needed - 555:,} more"
    )
    nothing = decide_challenger(UnitDifferences(), groups={}, alpha=ALPHA, gain=GAIN)
    assert nothing.reason.startswith("0 requests (0 labelled answers); proving")
    many = decide_challenger(units(300, 290, ties=5000), groups={}, alpha=ALPHA, gain=GAIN)
    assert many.reason.endswith("the true difference is probably smaller")


def test_a_canary_names_the_units_of_the_champion() -> None:
    matched = UnitDifferences(np.zeros(1), num_subjects=1, num_answers=2, matched=True)
    assert matched.sentence() == (
        "+0.0 points over 1 subject (2 labelled answers), each matched with one of the champion's"
    )


def test_a_proven_loss_of_a_group_stops_a_challenger_that_is_better_overall() -> None:
    groups = {"sex = female": units(2, 30), "sex = male": units(90, 5)}
    decision = decide_challenger(units(92, 35), groups=groups, alpha=ALPHA, gain=GAIN)
    assert decision.decision is Decision.STOP
    assert decision.reason == "proven worse in sex = female (alpha 0.01667, one of 3 hypotheses)"


def test_alpha_is_divided_among_the_hypotheses() -> None:
    def decision(overall: UnitDifferences, groups: dict[str, UnitDifferences]) -> Decision:
        return decide_challenger(overall, groups=groups, alpha=ALPHA, gain=GAIN).decision

    worse = units(3, 17)
    assert decision(worse, {}) is Decision.STOP
    unseen = {f"ward = {number}": UnitDifferences() for number in range(20)}
    assert decision(worse, unseen) is Decision.CONTINUE
    in_one = {"ward = 0": units(2, 17)}
    assert decision(units(50, 50), in_one) is Decision.STOP
    assert decision(units(50, 50), unseen | in_one) is Decision.CONTINUE


def test_an_equal_challenger_is_stopped_in_at_most_alpha_of_the_runs() -> None:
    chance, runs, stopped = np.random.default_rng(11), 200, 0
    for _ in range(runs):
        values = chance.choice([-1.0, 1.0], (60, 2))  # one unit of each group in turn
        for num in range(5, 61, 5):
            groups = {name: UnitDifferences(values[:num, index]) for index, name in enumerate("ab")}
            overall = UnitDifferences(values[:num].ravel())
            if decide_challenger(overall, groups=groups, alpha=0.2, gain=0.5).decision == "stop":
                stopped += 1
                break
    assert stopped / runs <= 0.2


def test_a_difference_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be from -1 to 1"):
        UnitDifferences(np.array([0.0, 1.5]))
    with pytest.raises(ValueError, match="alpha is 0"):
        decide_challenger(UnitDifferences(), groups={}, alpha=0.0, gain=GAIN)
