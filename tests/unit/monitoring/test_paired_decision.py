import numpy as np
import pytest

from tailorbird.monitoring.paired_decision import (
    Decision,
    PairedDifferences,
    decide_challenger,
)

ALPHA = 0.05


def pairs(wins: int, losses: int, *, ties: int = 0) -> PairedDifferences:
    values = np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])
    return PairedDifferences(values, num_answers=len(values))


def decision(overall: PairedDifferences, groups: dict[str, PairedDifferences]) -> Decision:
    return decide_challenger(overall, groups=groups, alpha=ALPHA).decision


def test_a_challenger_is_promoted_stopped_or_continued() -> None:
    assert decision(pairs(60, 20), {}) is Decision.PROMOTE
    assert decision(pairs(20, 60), {}) is Decision.STOP
    assert decision(pairs(30, 25, ties=500), {}) is Decision.CONTINUE
    assert decision(PairedDifferences(), {}) is Decision.CONTINUE
    # a group loses, although the challenger is better overall
    groups = {"sex = female": pairs(2, 30), "sex = male": pairs(90, 5)}
    assert decision(pairs(92, 35), groups) is Decision.STOP


def test_alpha_is_divided_among_the_groups() -> None:
    unseen = {f"ward = {number}": PairedDifferences() for number in range(20)}
    assert decision(pairs(2, 26), unseen) is Decision.STOP  # overall, whatever the groups
    in_one = {"ward = 0": pairs(2, 26)}
    assert decision(pairs(50, 50), in_one) is Decision.STOP
    assert decision(pairs(50, 50), unseen | in_one) is Decision.CONTINUE


def test_an_equal_challenger_is_stopped_in_at_most_alpha_of_the_runs() -> None:
    chance, runs, stopped = np.random.default_rng(11), 100, 0
    for _ in range(runs):
        values = chance.choice([-1.0, 1.0], (100, 2))  # one request of each group in turn
        for num in range(20, 101, 20):
            groups = {
                name: PairedDifferences(values[:num, index]) for index, name in enumerate("ab")
            }
            overall = PairedDifferences(values[:num].ravel())
            if decide_challenger(overall, groups=groups, alpha=0.4).decision == "stop":
                stopped += 1
                break
    assert 0 < stopped / runs <= 0.4


def test_an_alpha_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha is 0"):
        decide_challenger(PairedDifferences(), groups={}, alpha=0.0)
