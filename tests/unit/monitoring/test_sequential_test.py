import numpy as np
import pytest

from tailorbird.monitoring.sequential_test import (
    Decision,
    UnitDifferences,
    decide_challenger,
)

ALPHA = 0.05


def units(wins: int, losses: int, *, ties: int = 0) -> UnitDifferences:
    values = np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])
    return UnitDifferences(values, num_answers=len(values))


def decision(overall: UnitDifferences, groups: dict[str, UnitDifferences]) -> Decision:
    return decide_challenger(overall, groups=groups, alpha=ALPHA).decision


def test_a_challenger_is_promoted_stopped_or_continued() -> None:
    assert decision(units(60, 20), {}) is Decision.PROMOTE
    assert decision(units(20, 60), {}) is Decision.STOP
    assert decision(units(30, 25, ties=500), {}) is Decision.CONTINUE
    assert decision(UnitDifferences(), {}) is Decision.CONTINUE
    # a group loses, although the challenger is better overall
    groups = {"sex = female": units(2, 30), "sex = male": units(90, 5)}
    assert decision(units(92, 35), groups) is Decision.STOP


def test_alpha_is_divided_among_the_hypotheses() -> None:
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
            if decide_challenger(overall, groups=groups, alpha=0.4).decision == "stop":
                stopped += 1
                break
    assert 0 < stopped / runs <= 0.4


def test_a_difference_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be from -1 to 1"):
        UnitDifferences(np.array([0.0, 1.5]))
    with pytest.raises(ValueError, match="alpha is 0"):
        decide_challenger(UnitDifferences(), groups={}, alpha=0.0)
