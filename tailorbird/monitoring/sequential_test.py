"""An anytime-valid test between challenger and champion: it remains valid if it is computed after each new unit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

FloatArray = NDArray[np.float64]

SHAPE = 5
"""Shape of the Beta mixture. Of 1, 3, 5, 10 and 20, it needs about the fewest units for win rates of 0.55 to 0.7."""
STAKES = (np.arange(200) + 0.5) / 200  # [K] midpoints of the range from 0 to 1
LOG_WEIGHTS = (SHAPE - 1) * np.log1p(-(STAKES**2))  # of the Beta density at the win rate (1 + stake) / 2
LOG_WEIGHTS = LOG_WEIGHTS - logsumexp(LOG_WEIGHTS)
MIN_EDGE = 0.03  # smallest excess of a win rate over 1/2 that `units_needed` computes exactly
POWER = 0.8
USUAL_VARIANCE, USUAL_UNITS = 0.25, 20  # assumed before any unit is known, and the number of units that this counts as


class Decision(StrEnum):
    """The decision on a challenger."""

    PROMOTE = "promote"
    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, eq=False)
class UnitDifferences:
    """The challenger's share of right answers, or mean score, minus the champion's, by unit.

    A unit is a subject, or a request without one.

    Answers of one unit are dependent, so all of them are one observation. Two requests, or two subjects, are
    independent.
    """

    values: FloatArray = field(default_factory=lambda: np.zeros(0))  # [U] from -1 to 1
    num_subjects: int = 0  # the other units are requests
    num_answers: int = 0  # labelled answers of the challenger
    matched: bool = False  # True if a unit is compared with another unit (canary), not with itself (shadow)
    missing: FloatArray = field(default_factory=lambda: np.zeros(0))  # [U] share of answers without a score; or empty
    num_missing: int = 0
    """Labelled answers that the challenger failed to give. `values` counts each as 0, the lowest score."""

    def __post_init__(self) -> None:
        if len(self.values) and not max(np.abs(self.values).max(), np.abs(self.highest).max()) <= 1:
            raise ValueError("a difference between two shares or mean scores must be from -1 to 1")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def highest(self) -> FloatArray:
        """The differences [U] if each missing answer had the highest score."""
        return np.minimum(self.values + self.missing, 1.0) if len(self.missing) else self.values

    @property
    def mean(self) -> float:
        return float(self.values.mean()) if len(self) else 0.0

    def sentence(self) -> str:
        """Return the mean difference with the units and their number."""
        requests = len(self) - self.num_subjects
        units = [_counted(self.num_subjects, "subject")] if self.num_subjects else []
        units += [_counted(requests, "request")] if requests or not units else []
        matched = ", each matched with one of the champion's" if self.matched else ""
        mean = f"{100 * self.mean:+.1f} points over " if len(self) else ""
        missing = f", of which {self.num_missing:,} missing ones count as 0" if self.num_missing else ""
        return f"{mean}{' and '.join(units)} ({_counted(self.num_answers, 'labelled answer')}{missing}){matched}"


@dataclass(frozen=True)
class ChallengerDecision:
    """The decision on the challenger, with its evidence."""

    decision: Decision
    reason: str
    e_value: float  # against the null hypothesis that the challenger is not better
    e_value_worse: float  # against the null hypothesis that the challenger is not worse
    overall: UnitDifferences
    groups: Mapping[str, UnitDifferences]


def log_e_value(differences: FloatArray) -> float:
    """Return the natural logarithm of the e-value against the null hypothesis that no difference is above 0 on average.

    Each difference [U] multiplies the capital of a bet by 1 + stake x difference. The e-value is the mean capital over
    all stakes from 0 to 1, with the weights of a Beta(5, 5) density at the win rate (1 + stake) / 2, so no size of the
    difference has to be chosen in advance. Under the null hypothesis, it is a nonnegative supermartingale, so the
    probability that it ever reaches 1 / alpha is at most alpha (Ville's inequality). This holds for all differences
    from -1 to 1, also for those of scores that are not 0 or 1. It does not depend on the order.
    Sources: Ramdas, Gruenwald, Vovk and Shafer, Statistical Science 38, 2023; Waudby-Smith and Ramdas, JRSS B 86, 2024.
    """
    values, counts = np.unique(differences, return_counts=True)
    return float(logsumexp(LOG_WEIGHTS + np.log1p(np.outer(STAKES, values)) @ counts))


def decide_challenger(
    overall: UnitDifferences, *, groups: Mapping[str, UnitDifferences], alpha: float, gain: float
) -> ChallengerDecision:
    """Decide to promote, continue or stop. Each error has probability at most alpha, at any number of decisions.

    This includes experiments with a shadow and a canary, whose units are one sequence, and missing answers: they count
    as 0 in the proof that the challenger is better, and as 1 in the proof that it is worse.

    Stop if the challenger is proven worse overall or in a group, each at alpha divided by the number of these
    hypotheses. Promote if the challenger is proven better overall and worse in no group. `groups` are all groups by
    name, including those without units; they must be fixed before the experiment. To continue, the reason has the
    number of units that a true difference of `gain` needs. The decision is about live traffic only, so
    `tailorbird promote` still requires a verdict.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 0.5")
    better, worse = _e_value(overall.values), _e_value(-overall.highest)
    level = alpha / (len(groups) + 1)
    at = f"alpha {level:.4g}, one of {len(groups) + 1} hypotheses" if groups else f"alpha {level:.4g}"
    harmed = sorted(name for name, group in groups.items() if _e_value(-group.highest) >= 1 / level)
    if harmed:
        decision, reason = Decision.STOP, f"proven worse in {', '.join(harmed)} ({at})"
    elif worse >= 1 / level:
        decision, reason = Decision.STOP, f"proven worse: {overall.sentence()} ({at})"
    elif better >= 1 / alpha:
        decision, reason = Decision.PROMOTE, f"proven better: {overall.sentence()}"
    else:
        decision, reason = Decision.CONTINUE, f"{overall.sentence()}; {_missing(overall, alpha=alpha, gain=gain)}"
    return ChallengerDecision(decision, reason, better, worse, overall, groups)


def _missing(overall: UnitDifferences, *, alpha: float, gain: float) -> str:
    """Return the number of units that a true difference of `gain` needs, and how many of them are missing."""
    squares = float((overall.values**2).sum()) + USUAL_VARIANCE * USUAL_UNITS
    needed = units_needed(gain, variance=squares / (len(overall) + USUAL_UNITS), alpha=alpha)
    claim = f"proving a true difference of {100 * gain:+.3g} points takes about {needed:,} units"
    missing = f"{needed - len(overall):,} more" if needed > len(overall) else "the true difference is probably smaller"
    return f"{claim} (power {POWER:g}): {missing}"


def units_needed(gain: float, *, variance: float, alpha: float) -> int:
    """Return the number of units that prove a mean difference of `gain` with a power of 0.8.

    It is exact if each difference is -1, 0 or 1, and an approximation otherwise: `variance`, the mean square of the
    differences, is then the share of units with a difference.
    """
    if not 0 < gain < 1 or not 0 < variance <= 1:
        raise ValueError(
            f"gain is {gain} and variance {variance}; both must be above 0, gain below 1, variance up to 1"
        )
    edge = min(gain / variance, 0.96) / 2
    exact = max(edge, MIN_EDGE)
    return math.ceil(discordant_needed(0.5 + round(exact, 3), alpha=alpha) * (exact / edge) ** 2 / variance)


@cache
def discordant_needed(win_rate: float, *, alpha: float) -> int:
    """Return the number of units with a difference of 1 or -1 that prove this win rate with a power of 0.8.

    Exact, from the distribution of wins on the paths without a proof so far.
    """
    open_paths = np.ones(1)  # probability by number of wins
    ended, num, proven = 0.0, 0, 0
    while ended < POWER:
        num += 1
        paths = np.zeros(num + 1)
        paths[1:] += win_rate * open_paths
        paths[:-1] += (1 - win_rate) * open_paths
        while proven <= num and log_e_value_of_counts(proven, num - proven) < -math.log(alpha):
            proven += 1  # the fewest wins that are a proof grow with the number of units
        ended += float(paths[proven:].sum())
        paths[proven:] = 0
        open_paths = paths
    return num


def log_e_value_of_counts(wins: int, losses: int) -> float:
    """Return `log_e_value` of these numbers of differences of 1 and of -1."""
    return float(logsumexp(LOG_WEIGHTS + wins * np.log1p(STAKES) + losses * np.log1p(-STAKES)))


def _e_value(differences: FloatArray) -> float:
    return math.exp(min(log_e_value(differences), 700.0))


def _counted(num: int, noun: str) -> str:
    return f"{num:,} {noun}{'' if num == 1 else 's'}"
