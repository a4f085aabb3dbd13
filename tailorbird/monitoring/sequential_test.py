"""An anytime-valid test between challenger and champion: it remains valid if it is computed after
each new unit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.statistics.confidence_sequence import log_e_value

FloatArray = NDArray[np.float64]


class Decision(StrEnum):
    """The decision on a challenger."""

    PROMOTE = "promote"
    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, eq=False)
class UnitDifferences:
    """The challenger's share of right answers, or mean score, minus the champion's, by unit.

    A unit is a subject, or a request without one. Its answers are dependent, so they are one
    observation. Units of a canary that are matched with the same unit of the champion are one
    observation too.
    """

    values: FloatArray = field(default_factory=lambda: np.zeros(0))  # [U] from -1 to 1
    num_subjects: int = 0  # the other units are requests
    num_answers: int = 0  # labelled answers of the challenger
    matched: bool = False
    """True if a unit is compared with another unit (canary), not with itself (shadow)."""
    missing: FloatArray = field(default_factory=lambda: np.zeros(0))
    """[U] Share of answers without a score; or empty."""
    num_missing: int = 0
    """Labelled answers that the challenger failed to give. `values` counts each as 0, the lowest
    score."""

    def __post_init__(self) -> None:
        if len(self.values) and not max(np.abs(self.values).max(), np.abs(self.highest).max()) <= 1:
            raise ValueError("a difference between two shares or mean scores must be from -1 to 1")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def highest(self) -> FloatArray:
        """The differences [U] if each missing answer had the highest score."""
        if len(self.missing):
            return np.minimum(self.values + self.missing, 1.0)
        return self.values

    @property
    def mean(self) -> float:
        if len(self):
            return float(self.values.mean())
        return 0.0

    def sentence(self) -> str:
        """Return the mean difference with the units and their number."""
        num_requests = len(self) - self.num_subjects
        units = _counted(num_requests, "request")
        if self.num_subjects:
            subjects = _counted(self.num_subjects, "subject")
            units = f"{subjects} and {units}" if num_requests else subjects
        answers = _counted(self.num_answers, "labelled answer")
        if self.num_missing:
            answers += f", of which {self.num_missing:,} missing ones count as 0"
        sentence = f"{units} ({answers})"
        if len(self):
            sentence = f"{100 * self.mean:+.1f} points over {sentence}"
        if self.matched:
            sentence += ", each matched with the champion's of its hour"
        return sentence


@dataclass(frozen=True)
class ChallengerDecision:
    """The decision on the challenger, with its evidence."""

    decision: Decision
    reason: str
    overall: UnitDifferences
    groups: Mapping[str, UnitDifferences]


def decide_challenger(
    overall: UnitDifferences, *, groups: Mapping[str, UnitDifferences], alpha: float
) -> ChallengerDecision:
    """Decide to promote, continue or stop. Each error has probability at most alpha, at any number
    of decisions.

    This includes experiments with a shadow and a canary, whose units are one sequence, and missing
    answers: they count as 0 in the proof that the challenger is better, and as 1 in the proof that
    it is worse.

    Stop if the challenger is proven worse overall or in a group, each at alpha divided by the
    number of these hypotheses. Promote if the challenger is proven better overall and worse in no
    group. `groups` are all groups by name, including those without units; they must be fixed before
    the experiment. The decision is about live traffic only, so `tailorbird promote` still requires
    a verdict.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 0.5")
    level = alpha / (len(groups) + 1)
    stated_level = f"alpha {level:.4g}"
    if groups:
        stated_level += f", one of {len(groups) + 1} hypotheses"
    harmed = [name for name in sorted(groups) if _is_proven(-groups[name].highest, level=level)]

    decision = Decision.CONTINUE
    reason = f"not proven: {overall.sentence()}"
    if harmed:
        decision = Decision.STOP
        reason = f"proven worse in {', '.join(harmed)} ({stated_level})"
    elif _is_proven(-overall.highest, level=level):
        decision = Decision.STOP
        reason = f"proven worse: {overall.sentence()} ({stated_level})"
    elif _is_proven(overall.values, level=alpha):
        decision = Decision.PROMOTE
        reason = f"proven better: {overall.sentence()}"
    return ChallengerDecision(decision=decision, reason=reason, overall=overall, groups=groups)


def _is_proven(differences: FloatArray, *, level: float) -> bool:
    """Return True if the mean of the differences is proven to be above 0 with an error of at most
    `level`."""
    return log_e_value(differences) >= -math.log(level)


def _counted(num: int, noun: str) -> str:
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"
