import math

import numpy as np
import pytest

from tailorbird.evaluation.statistics.confidence_sequence import log_wealth
from tailorbird.monitoring.sequential_test import (
    Decision,
    UnitDifferences,
    decide_challenger,
    units_needed,
)

ALPHA, GAIN = 0.05, 0.03


def units(wins: int, losses: int, *, ties: int = 0, num_subjects: int = 0) -> UnitDifferences:
    values = np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])
    return UnitDifferences(values, num_subjects=num_subjects, num_answers=len(values))


@pytest.mark.parametrize(
    ("values", "shares"),
    [((-1, 0, 1), (0.08, 0.8, 0.12)), ((-1, 1), (0.4, 0.6)), ((-0.5, 0.25, 0.5), (0.4, 0.2, 0.4))],
)
def test_the_units_needed_give_a_power_of_at_least_eighty_percent(
    values: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    points = np.array(values)
    needed = units_needed(float(points @ shares), variance=float(points**2 @ shares), alpha=ALPHA)
    counts = (
        np.random.default_rng(7).multinomial(5, shares, size=(1000, needed // 5)).cumsum(axis=1)
    )
    proven = log_wealth(points, counts=counts, mean=0.0) >= -math.log(ALPHA)
    assert 0.78 <= np.mean(proven.any(axis=1)) <= 0.9  # the number is at most a fifth too large


def test_more_units_are_needed_for_a_smaller_gain_or_a_larger_variance() -> None:
    needed = [units_needed(gain, variance=0.2, alpha=ALPHA) for gain in (0.1, 0.03, 0.01, 0.001)]
    assert needed == sorted(needed)
    assert units_needed(GAIN, variance=0.1, alpha=ALPHA) < units_needed(
        GAIN, variance=0.3, alpha=ALPHA
    )
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
    continued = decide_challenger(
        units(30, 25, ties=500, num_subjects=555), groups={}, alpha=ALPHA, gain=GAIN
    )
    needed = units_needed(GAIN, variance=60 / 575, alpha=ALPHA)
    assert continued.decision is Decision.CONTINUE
    assert continued.reason == (
        "+0.9 points over 555 subjects (555 labelled answers); proving a true difference of +3 "
        f"points takes about {needed:,} units (power 0.8): {needed - 555:,} more"
    )
    nothing = decide_challenger(UnitDifferences(), groups={}, alpha=ALPHA, gain=GAIN)
    assert nothing.reason.startswith("0 requests (0 labelled answers); proving")
    many = decide_challenger(units(300, 290, ties=5000), groups={}, alpha=ALPHA, gain=GAIN)
    assert many.reason.endswith("the true difference is probably smaller")


def test_a_proven_loss_of_a_group_stops_a_challenger_that_is_better_overall() -> None:
    groups = {"sex = female": units(2, 30), "sex = male": units(90, 5)}
    decision = decide_challenger(units(92, 35), groups=groups, alpha=ALPHA, gain=GAIN)
    assert decision.decision is Decision.STOP
    assert decision.reason == "proven worse in sex = female (alpha 0.01667, one of 3 hypotheses)"


def test_alpha_is_divided_among_the_hypotheses() -> None:
    def decision(overall: UnitDifferences, groups: dict[str, UnitDifferences]) -> Decision:
        return decide_challenger(overall, groups=groups, alpha=ALPHA, gain=GAIN).decision

    worse = units(3, 22)
    assert decision(worse, {}) is Decision.STOP
    unseen = {f"ward = {number}": UnitDifferences() for number in range(20)}
    assert decision(worse, unseen) is Decision.CONTINUE
    in_one = {"ward = 0": units(2, 26)}
    assert decision(units(50, 50), in_one) is Decision.STOP
    assert decision(units(50, 50), unseen | in_one) is Decision.CONTINUE


def test_an_equal_challenger_is_stopped_in_at_most_alpha_of_the_runs() -> None:
    chance, runs, stopped = np.random.default_rng(11), 100, 0
    for _ in range(runs):
        values = chance.choice([-1.0, 1.0], (100, 2))  # one unit of each group in turn
        for num in range(20, 101, 20):
            groups = {name: UnitDifferences(values[:num, index]) for index, name in enumerate("ab")}
            overall = UnitDifferences(values[:num].ravel())
            if decide_challenger(overall, groups=groups, alpha=0.4, gain=0.5).decision == "stop":
                stopped += 1
                break
    assert 0 < stopped / runs <= 0.4


def test_a_difference_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be from -1 to 1"):
        UnitDifferences(np.array([0.0, 1.5]))
    with pytest.raises(ValueError, match="alpha is 0"):
        decide_challenger(UnitDifferences(), groups={}, alpha=0.0, gain=GAIN)
