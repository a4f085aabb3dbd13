"""Anytime-valid test between two served arms: valid at every look, however often and whenever it is computed."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

SHAPE = 5
"""Of the Beta mixture: of 1, 3, 5, 10, 20 about the quickest for win rates of 0.55 to 0.7 (see `pairs_needed`)."""
MAX_PAIRS = 20_000  # discordant pairs up to which `pairs_needed` searches


class Decision(StrEnum):
    """What to do with the challenger."""

    PROMOTE = "promote"
    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True)
class Pairs:
    """Counts of labelled requests that both arms answered, or that were paired by their order."""

    only_challenger_right: int
    only_champion_right: int
    num_pairs: int  # including pairs on which the arms agree

    def __post_init__(self) -> None:
        if min(self.only_challenger_right, self.only_champion_right) < 0 or self.discordant > self.num_pairs:
            raise ValueError(f"{self} cannot be: counts are 0 or more, and no more pairs differ than there are")

    @property
    def discordant(self) -> int:
        """Pairs of which exactly one arm was right."""
        return self.only_challenger_right + self.only_champion_right


@dataclass(frozen=True)
class ChallengerDecision:
    """The decision on the challenger, with the evidence for it."""

    decision: Decision
    reason: str
    e_value: float  # against "the challenger is no better"
    e_value_worse: float  # against "the challenger is no worse"
    pairs: Pairs


def log_e_value(wins: int, losses: int) -> float:
    """Return the natural logarithm of the e-value against "a win is no likelier than a loss".

    The bet is spread over all win rates p from 1/2 to 1 by a Beta(5, 5) density (a mixture, so no bet has to be chosen
    beforehand): the integral of p^wins (1-p)^losses over it, over 2^-(wins + losses). Under the null hypothesis this is
    a nonnegative supermartingale, so it reaches 1 / alpha at any time with probability at most alpha: Ville's
    inequality; Ramdas, Gruenwald, Vovk, Shafer, Statistical Science 38 (2023).
    """
    above = betainc(losses + SHAPE, wins + SHAPE, 0.5)  # the mass of p over 1/2
    if above <= 0:  # underflow
        return -math.inf
    odds = betaln(wins + SHAPE, losses + SHAPE) - betaln(SHAPE, SHAPE) + math.log(above)
    return float(odds + (wins + losses + 1) * math.log(2))


def decide_challenger(pairs: Pairs, *, groups: Mapping[str, Pairs], alpha: float) -> ChallengerDecision:
    """Decide to promote, continue or stop; valid after every pair, errs with probability at most alpha each way.

    Stops if the challenger is proven worse, overall or in a group, each at alpha over the number of these hypotheses.
    `groups`, by name, are all groups that will ever be tested, fixed before the experiment, including those without
    pairs: chosen by the data, their number would not be fixed. Promotes if the challenger is proven better overall and
    in no group worse. `tailorbird promote` needs a verdict all the same: this is about live traffic only.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; allowed: over 0 and under 0.5")
    better = _e_value(pairs.only_challenger_right, pairs.only_champion_right)
    worse = _e_value(pairs.only_champion_right, pairs.only_challenger_right)
    wins = pairs.only_challenger_right
    counts = f"of {pairs.discordant:,} pairs that differ the challenger alone is right in {wins:,}"
    level = alpha / (len(groups) + 1)
    at = f"alpha {level:.4g}, one of {len(groups) + 1} hypotheses" if groups else f"alpha {level:.4g}"
    losses = {name: (group.only_champion_right, group.only_challenger_right) for name, group in groups.items()}
    harmed = sorted(name for name, counted in losses.items() if _e_value(*counted) >= 1 / level)
    if harmed:
        decision, reason = Decision.STOP, f"proven worse in {', '.join(harmed)} ({at})"
    elif worse >= 1 / level:
        decision, reason = Decision.STOP, f"proven worse: {counts} ({at})"
    elif better >= 1 / alpha:
        decision, reason = Decision.PROMOTE, f"proven better: {counts}"
    else:
        needed = pairs_needed(0.6, alpha=alpha)
        decision = Decision.CONTINUE
        reason = f"{counts}; a split of 60 to 40 would be found with about {needed:,} (8 times in 10)"
    return ChallengerDecision(decision, reason, better, worse, pairs)


@cache
def pairs_needed(win_rate: float, *, alpha: float, power: float = 0.8) -> int:
    """Return the discordant pairs by which a challenger with this win rate is proven better with probability `power`.

    Exact, by the distribution of wins over pairs among the paths that have not ended. Raises ValueError for a win rate
    of 1/2 or less, and if `MAX_PAIRS` pairs do not suffice.
    """
    if not 0.5 < win_rate < 1:
        raise ValueError(f"the chance of a win is {win_rate}; allowed: over 0.5 and under 1")
    open_paths: NDArray[np.float64] = np.ones(1)  # by wins so far
    ended = 0.0
    for num in range(1, MAX_PAIRS + 1):
        paths = np.zeros(num + 1)
        paths[1:] += win_rate * open_paths
        paths[:-1] += (1 - win_rate) * open_paths
        proven = min_wins(num, alpha=alpha)
        ended += float(paths[proven:].sum())
        paths[proven:] = 0
        open_paths = paths
        if ended >= power:
            return num
    raise ValueError(f"with a chance of {win_rate} more than {MAX_PAIRS:,} pairs are needed; expect a larger one")


def min_wins(num: int, *, alpha: float) -> int:
    """Return the fewest wins of `num` pairs that are proof; `num + 1` if none are. The e-value grows with wins."""
    return bisect_left(range(num + 1), -math.log(alpha), (num + 1) // 2, key=lambda wins: log_e_value(wins, num - wins))


def _e_value(wins: int, losses: int) -> float:
    return math.exp(min(log_e_value(wins, losses), 700.0))
