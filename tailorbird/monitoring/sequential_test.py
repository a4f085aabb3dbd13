"""An anytime-valid test between two served arms: it may be computed at any time and any number of times."""

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
"""Shape of the Beta mixture. Of 1, 3, 5, 10 and 20, it needs about the fewest pairs for win rates of 0.55 to 0.7."""
MAX_PAIRS = 20_000  # maximum discordant pairs in the search of `pairs_needed`


class Decision(StrEnum):
    """The decision on a challenger."""

    PROMOTE = "promote"
    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True)
class Pairs:
    """Counts of pairs of labelled answers, one of each arm, paired by request or by order."""

    only_challenger_right: int
    only_champion_right: int
    num_pairs: int  # including pairs on which the arms agree

    def __post_init__(self) -> None:
        if min(self.only_challenger_right, self.only_champion_right) < 0 or self.discordant > self.num_pairs:
            raise ValueError(f"{self} is invalid: counts must be 0 or more, and the discordant pairs at most num_pairs")

    @property
    def discordant(self) -> int:
        """The number of pairs in which exactly one arm is right."""
        return self.only_challenger_right + self.only_champion_right


@dataclass(frozen=True)
class ChallengerDecision:
    """The decision on the challenger, with its evidence."""

    decision: Decision
    reason: str
    e_value: float  # against the null hypothesis that the challenger is not better
    e_value_worse: float  # against the null hypothesis that the challenger is not worse
    pairs: Pairs


def log_e_value(wins: int, losses: int) -> float:
    """Return the natural logarithm of the e-value against the null hypothesis that wins are no likelier than losses.

    The alternative is a mixture of all win rates p from 1/2 to 1 with a Beta(5, 5) density, so no win rate has to be
    chosen in advance. The e-value is the integral of p^wins (1-p)^losses over the mixture, divided by
    2^-(wins + losses). Under the null hypothesis, it is a nonnegative supermartingale, so the probability that
    it ever reaches 1 / alpha is at most alpha (Ville's inequality).
    Source: Ramdas, Gruenwald, Vovk and Shafer, Statistical Science 38, 2023.
    """
    above = betainc(losses + SHAPE, wins + SHAPE, 0.5)  # the mass of p above 1/2
    if above <= 0:  # underflow
        return -math.inf
    odds = betaln(wins + SHAPE, losses + SHAPE) - betaln(SHAPE, SHAPE) + math.log(above)
    return float(odds + (wins + losses + 1) * math.log(2))


def decide_challenger(pairs: Pairs, *, groups: Mapping[str, Pairs], alpha: float) -> ChallengerDecision:
    """Decide to promote, continue or stop. Each error has probability at most alpha, at any number of decisions.

    Stop if the challenger is proven worse overall or in a group, each at alpha divided by the number of these
    hypotheses. Promote if the challenger is proven better overall and worse in no group. `groups` are all groups by
    name, including those without pairs; they must be fixed before the experiment. The decision is about live traffic
    only, so `tailorbird promote` still requires a verdict.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 0.5")
    better = _e_value(pairs.only_challenger_right, pairs.only_champion_right)
    worse = _e_value(pairs.only_champion_right, pairs.only_challenger_right)
    wins = pairs.only_challenger_right
    counts = f"the challenger alone is right in {wins:,} of {pairs.discordant:,} discordant pairs"
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
        reason = f"{counts}; a split of 60 to 40 needs about {needed:,} discordant pairs (power 0.8)"
    return ChallengerDecision(decision, reason, better, worse, pairs)


@cache
def pairs_needed(win_rate: float, *, alpha: float, power: float = 0.8) -> int:
    """Return the number of discordant pairs that prove a challenger with this win rate better with this power.

    Exact, from the distribution of wins on the paths without a proof so far. Raises ValueError if the win rate is not
    above 1/2 and below 1, and if `MAX_PAIRS` pairs are too few.
    """
    if not 0.5 < win_rate < 1:
        raise ValueError(f"win_rate is {win_rate}; it must be above 0.5 and below 1")
    open_paths: NDArray[np.float64] = np.ones(1)  # probability by number of wins
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
    raise ValueError(f"a win_rate of {win_rate} needs more than {MAX_PAIRS:,} pairs; use a larger win_rate")


def min_wins(num: int, *, alpha: float) -> int:
    """Return the fewest wins in `num` pairs that are a proof, or `num + 1` if there is none."""
    return bisect_left(range(num + 1), -math.log(alpha), (num + 1) // 2, key=lambda wins: log_e_value(wins, num - wins))


def _e_value(wins: int, losses: int) -> float:
    return math.exp(min(log_e_value(wins, losses), 700.0))
