"""Decide on a challenger by the paired differences of its answers to the champion's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.statistics.confidence_sequence import confidence_sequence

FloatArray = NDArray[np.float64]


class Decision(StrEnum):
    """The decision on a challenger."""

    PROMOTE = "promote"
    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, eq=False)
class PairedDifferences:
    """The challenger's share of right answers, or mean score, minus the champion's, by request."""

    values: FloatArray = field(default_factory=lambda: np.zeros(0))  # [R] from -1 to 1
    num_answers: int = 0  # labelled answers of the challenger
    missing: FloatArray = field(default_factory=lambda: np.zeros(0))
    """[R] Share of answers that the challenger failed to give; or empty."""
    num_missing: int = 0
    """Number of these answers. `values` counts each as 0, the lowest score."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def highest(self) -> FloatArray:
        """The differences [R] if each missing answer had the highest score."""
        if len(self.missing):
            return np.minimum(self.values + self.missing, 1.0)
        return self.values

    @property
    def mean(self) -> float:
        if len(self):
            return float(self.values.mean())
        return 0.0

    def interval(self, *, alpha: float) -> tuple[float, float]:
        """Return the confidence sequence of the mean: the lower end if missing answers have the
        lowest score, the upper end if they have the highest."""
        low = confidence_sequence(self.values, alpha=alpha)[0]
        high = confidence_sequence(self.highest, alpha=alpha)[1]
        return low, high

    def sentence(self, *, alpha: float) -> str:
        """Return the mean difference with its interval and the number of requests."""
        answers = _counted(self.num_answers, "labelled answer")
        if self.num_missing:
            answers += f", of which {self.num_missing:,} missing ones count as 0"
        sentence = f"{_counted(len(self), 'request')} ({answers})"
        if not len(self):
            return sentence
        low, high = (f"{100 * end:+.1f}" for end in self.interval(alpha=alpha))
        level = f"{100 * (1 - alpha):.4g}% confidence sequence {low} to {high}"
        return f"{100 * self.mean:+.1f} points ({level}) over {sentence}"


@dataclass(frozen=True)
class ChallengerDecision:
    """The decision on the challenger, with its evidence."""

    decision: Decision
    reason: str
    overall: PairedDifferences
    groups: Mapping[str, PairedDifferences]


def decide_challenger(
    overall: PairedDifferences, *, groups: Mapping[str, PairedDifferences], alpha: float
) -> ChallengerDecision:
    """Decide to promote, continue or stop, by the confidence sequence that re-evaluations use. Each
    error has probability at most alpha, at any number of decisions.

    Stop if the challenger is proven worse overall, or in a group at alpha divided by the number of
    groups. Promote if it is proven better overall and worse in no group. `groups` are all groups by
    name, including those without answers; they must be fixed before the experiment. The decision is
    about live traffic only, so `tailorbird promote` still requires a verdict.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 0.5")
    low, high = overall.interval(alpha=alpha)
    harmed = [
        name for name in sorted(groups) if groups[name].interval(alpha=alpha / len(groups))[1] < 0
    ]
    sentence = overall.sentence(alpha=alpha)
    decision = Decision.CONTINUE
    reason = f"not proven: {sentence}"
    if harmed:
        decision = Decision.STOP
        reason = f"proven worse in {', '.join(harmed)}, one of {len(groups)} groups"
    elif high < 0:
        decision = Decision.STOP
        reason = f"proven worse: {sentence}"
    elif low > 0:
        decision = Decision.PROMOTE
        reason = f"proven better: {sentence}"
    return ChallengerDecision(decision=decision, reason=reason, overall=overall, groups=groups)


def _counted(num: int, noun: str) -> str:
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"
