import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from tailorbird.monitoring.sequential_test import SHAPE, Decision, Pairs, decide_challenger, log_e_value, pairs_needed

ALPHA = 0.05


def pairs(wins: int, losses: int) -> Pairs:
    return Pairs(wins, losses, wins + losses)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 1), (1, 3), (40, 20), (20, 40)])
def test_the_e_value_equals_the_numerical_integral(wins: int, losses: int) -> None:
    def bet(p: float) -> float:
        return float(2 * beta.pdf(p, SHAPE, SHAPE) * (2 * p) ** wins * (2 * (1 - p)) ** losses)

    assert math.exp(log_e_value(wins, losses)) == pytest.approx(quad(bet, 0.5, 1)[0], rel=1e-6)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 2), (2, 9), (300, 280)])
def test_under_the_null_hypothesis_the_e_value_is_constant_on_average(wins: int, losses: int) -> None:
    now = math.exp(log_e_value(wins, losses))
    won, lost = math.exp(log_e_value(wins + 1, losses)), math.exp(log_e_value(wins, losses + 1))
    assert (won + lost) / 2 == pytest.approx(now)


def test_decisions_after_every_pair_err_in_at_most_alpha_of_the_runs() -> None:
    chance = np.random.default_rng(1979)
    alarms, runs, length = 0, 400, 300
    least = [
        next((w for w in range(n + 1) if log_e_value(w, n - w) >= -math.log(ALPHA)), n + 1)
        for n in range(1, length + 1)
    ]
    for _ in range(runs):
        wins = np.cumsum(chance.random(length) < 0.5)
        alarms += bool((wins >= np.array(least)).any())
    assert alarms / runs < ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_the_pairs_needed_give_a_power_of_eighty_percent() -> None:
    chance, needed = np.random.default_rng(7), pairs_needed(0.6, alpha=ALPHA)
    assert 200 < needed < 300
    num_proven = 0
    for _ in range(500):
        wins = np.cumsum(chance.random(needed) < 0.6)
        num_proven += any(log_e_value(int(w), n - int(w)) >= -math.log(ALPHA) for n, w in enumerate(wins, 1))
    assert num_proven / 500 == pytest.approx(0.8, abs=0.06)


def test_a_challenger_is_promoted_stopped_or_continued() -> None:
    assert decide_challenger(pairs(60, 20), groups={}, alpha=ALPHA).decision is Decision.PROMOTE
    stopped = decide_challenger(pairs(20, 60), groups={}, alpha=ALPHA)
    assert (stopped.decision, stopped.reason) == (
        Decision.STOP,
        "proven worse: the challenger alone is right in 20 of 80 discordant pairs (alpha 0.05)",
    )
    continued = decide_challenger(pairs(30, 25), groups={}, alpha=ALPHA)
    assert continued.decision is Decision.CONTINUE
    assert "60 to 40 needs about 276 discordant pairs" in continued.reason


def test_a_proven_loss_of_a_group_stops_a_challenger_that_is_better_overall() -> None:
    groups = {"sex = female": pairs(2, 30), "sex = male": pairs(90, 5)}
    decision = decide_challenger(pairs(92, 35), groups=groups, alpha=ALPHA)
    assert decision.decision is Decision.STOP
    assert decision.reason == "proven worse in sex = female (alpha 0.01667, one of 3 hypotheses)"


def test_alpha_is_divided_among_the_hypotheses() -> None:
    worse = pairs(3, 17)
    assert decide_challenger(worse, groups={}, alpha=ALPHA).decision is Decision.STOP
    unseen = {f"ward = {number}": pairs(0, 0) for number in range(20)}
    assert decide_challenger(worse, groups=unseen, alpha=ALPHA).decision is Decision.CONTINUE
    in_one = {"ward = 0": pairs(2, 17)}
    assert decide_challenger(pairs(50, 50), groups=in_one, alpha=ALPHA).decision is Decision.STOP
    assert decide_challenger(pairs(50, 50), groups=unseen | in_one, alpha=ALPHA).decision is Decision.CONTINUE


def test_an_equal_challenger_is_stopped_in_at_most_alpha_of_the_runs() -> None:
    chance, runs, stopped = np.random.default_rng(11), 200, 0
    for _ in range(runs):
        groups = chance.random((60, 2)) < 0.5  # one pair of each group in turn
        for num in range(5, 61, 5):
            wins = groups[:num].sum(0)
            by_group = {name: pairs(int(win), num - int(win)) for name, win in zip("ab", wins, strict=True)}
            if (
                decide_challenger(
                    pairs(int(wins.sum()), 2 * num - int(wins.sum())), groups=by_group, alpha=0.2
                ).decision
                == "stop"
            ):
                stopped += 1
                break
    assert stopped / runs <= 0.2


@pytest.mark.parametrize("counts", [(-1, 0, 0), (2, 2, 3)])
def test_invalid_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is invalid"):
        Pairs(*counts)


def test_a_win_rate_without_a_provable_advantage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be above 0\.5"):
        pairs_needed(0.5, alpha=ALPHA)
    with pytest.raises(ValueError, match="use a larger win_rate"):
        pairs_needed(0.501, alpha=ALPHA)
