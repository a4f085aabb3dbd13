"""Between two arms that serve: whether one is proven better, however often and whenever one looks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

SHAPE = 5
"""Of the bet: of 1, 3, 5, 10, 20 it is about the quickest for chances of 0.55 to 0.7 (`pairs_needed` compares them)."""
LOOKED_AHEAD = 20_000
"""Discordant pairs up to which `pairs_needed` looks."""


class Decision(StrEnum):
    """What to do with the version on trial."""

    PROMOTE = "promote"
    GO_ON = "go on"
    STOP = "stop"


@dataclass(frozen=True)
class Pairs:
    """Labelled requests that both arms answered, or that were paired by their order, as far as the arms differ."""

    only_trial_right: int
    only_champion_right: int
    num_pairs: int
    """Those on which they do not differ included."""

    def __post_init__(self) -> None:
        if min(self.only_trial_right, self.only_champion_right) < 0 or self.discordant > self.num_pairs:
            raise ValueError(f"{self} cannot be: counts are 0 or more, and no more pairs differ than there are")

    @property
    def discordant(self) -> int:
        """Pairs of which one arm alone was right."""
        return self.only_trial_right + self.only_champion_right


@dataclass(frozen=True)
class Judgement:
    """What is known of the version on trial, and why."""

    decision: Decision
    reason: str
    wealth: float
    """The e-value against "the trial is no better": a fair bettor's money, who began with 1."""
    wealth_against: float
    """The same against "the trial is no worse"."""
    pairs: Pairs


def log_wealth(wins: int, losses: int) -> float:
    """Natural logarithm of what a bettor on wins has, who began with 1, if the odds were even.

    The bet is spread over all chances p of a win from 1/2 to 1 by a Beta(5, 5) density (a mixture, so no bet has to be
    chosen beforehand): the integral of p^wins (1-p)^losses over it, over 2^-(wins + losses). Where a win is no likelier
    than a loss this is a nonnegative supermartingale, whatever came before, so that it reaches 1 / alpha at any time
    with a probability of at most alpha: Ville's inequality; Ramdas, Gruenwald, Vovk, Shafer, Statistical Science 38
    (2023).
    """
    above = betainc(losses + SHAPE, wins + SHAPE, 0.5)  # the mass of p over 1/2
    if above <= 0:  # underflow: a bettor who lost everything
        return -math.inf
    odds = betaln(wins + SHAPE, losses + SHAPE) - betaln(SHAPE, SHAPE) + math.log(above)
    return float(odds + (wins + losses + 1) * math.log(2))


def judge_trial(pairs: Pairs, *, groups: Mapping[str, Pairs], alpha: float) -> Judgement:
    """Promote, go on, or stop: may be asked after every pair, and errs at most with probability alpha each way.

    Stops where the trial is proven worse, overall or in one of the groups, each at alpha over the number of these
    questions. `groups`, by name, are all that may ever be asked about, fixed before the trial, those without pairs
    included: chosen by what was seen, their number would be no fixed one. Promotes where the trial is proven better
    overall and in no group worse. The verdict of `tailorbird promote` is asked for all the same: this says only what
    the live traffic shows.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; allowed: over 0 and under 0.5")
    up = _wealth(pairs.only_trial_right, pairs.only_champion_right)
    down = _against(pairs)
    told = f"of {pairs.discordant:,} pairs that differ the trial alone is right in {pairs.only_trial_right:,}"
    level = alpha / (len(groups) + 1)
    at = f"alpha {level:.4g}, one of {len(groups) + 1} questions" if groups else f"alpha {level:.4g}"
    harmed = sorted(
        name
        for name, group in groups.items()
        if _wealth(group.only_champion_right, group.only_trial_right) >= 1 / level
    )
    if harmed:
        reason = f"proven worse in {', '.join(harmed)} ({at})"
        return Judgement(Decision.STOP, reason, up, down, pairs)
    if down >= 1 / level:
        return Judgement(Decision.STOP, f"proven worse: {told} ({at})", up, down, pairs)
    if up >= 1 / alpha:
        return Judgement(Decision.PROMOTE, f"proven better: {told}", up, down, pairs)
    needed = pairs_needed(0.6, alpha=alpha)
    reason = f"{told}; a split of 60 to 40 would be found with about {needed:,} (8 times in 10)"
    return Judgement(Decision.GO_ON, reason, up, down, pairs)


@cache
def pairs_needed(chance: float, *, alpha: float, power: float = 0.8) -> int:
    """Discordant pairs by which a trial that wins each with `chance` is proven better with probability `power`.

    Exact, by the distribution of wins over pairs among the courses not yet ended. Raises ValueError for a chance of 1/2
    or less, and where `LOOKED_AHEAD` pairs do not suffice.
    """
    if not 0.5 < chance < 1:
        raise ValueError(f"the chance of a win is {chance}; allowed: over 0.5 and under 1")
    going: NDArray[np.float64] = np.ones(1)  # by wins so far
    ended = 0.0
    for num in range(1, LOOKED_AHEAD + 1):
        further = np.zeros(num + 1)
        further[1:] += chance * going
        further[:-1] += (1 - chance) * going
        proven = least_wins(num, alpha=alpha)
        ended += float(further[proven:].sum())
        further[proven:] = 0
        going = further
        if ended >= power:
            return num
    raise ValueError(f"with a chance of {chance} more than {LOOKED_AHEAD:,} pairs are needed; expect a larger one")


def least_wins(num: int, *, alpha: float) -> int:
    """The fewest wins of `num` pairs that prove it; `num + 1` where none do. Wealth grows with wins."""
    low, high = (num + 1) // 2, num + 1
    while low < high:
        middle = (low + high) // 2
        if log_wealth(middle, num - middle) >= -math.log(alpha):
            high = middle
        else:
            low = middle + 1
    return low


def _against(pairs: Pairs) -> float:
    return _wealth(pairs.only_champion_right, pairs.only_trial_right)


def _wealth(wins: int, losses: int) -> float:
    return math.exp(min(log_wealth(wins, losses), 700.0))
