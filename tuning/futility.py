"""Whether a trial, and then the whole sweep, can still reach what would be worth a change: pure, from scores alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

Z_TWO_SIDED_95 = 1.96
MIN_FINAL_SCORES = 4
"""Trials whose end is known before a sweep may end: fewer say nothing of how far trials lie apart."""
ALPHA = 0.05
"""Chance that a sweep is ended although one of its further trials would have reached the goal."""


@dataclass(frozen=True)
class Target:
    """What trials are measured by: the pretrained rungs, and the score from which a change of model can be worth it."""

    rungs: Mapping[str, float]
    """Each rung's score on validation, by its kind."""
    to_beat: float
    """The incumbent's score and the minimum gain, or the bag-of-words reference's where that is higher."""
    text: str
    """`to_beat` in words."""


@dataclass(frozen=True)
class TrialScores:
    """How a trial stands."""

    scores: Sequence[float]
    """After each epoch run, on validation."""
    epochs_left: int


def set_goal(rungs: Sequence[Mapping[str, Any]], *, minimum_gain: float) -> Target:
    """What the verdict will ask of the candidate, on validation: `minimum_gain` over the best rung that can serve, and
    no less than the best rung of all (the reference cannot serve, and must be beaten too).

    `rungs` hold `kind`, `validation` and `servable`; at least one is servable.
    """
    incumbent = max((rung for rung in rungs if rung["servable"]), key=lambda rung: float(rung["validation"]))
    best = max(rungs, key=lambda rung: float(rung["validation"]))
    to_beat, text = float(incumbent["validation"]) + minimum_gain, f"{incumbent['kind']} and {minimum_gain:g}"
    if float(best["validation"]) > to_beat:
        to_beat, text = float(best["validation"]), str(best["kind"])
    scores = {str(rung["kind"]): float(rung["validation"]) for rung in rungs}
    return Target(scores, to_beat, f"{to_beat:.3f} ({text})")


def optimistic_final_score(trial: TrialScores, *, num_rows: int) -> float | None:
    """The most that a trial's last epoch can be hoped to score; None after one epoch of several.

    The hope: each epoch left brings as much as the latest one did (accuracy curves flatten, so later epochs bring
    less as a rule), and the score was read 1.96 standard errors too low (sqrt(p (1 - p) / `num_rows`)). After one
    epoch the slope is unknown. A training that has hardly begun to learn may do better than hoped: a recorded one went
    from 0.18 by 0.12 to 0.28, and stayed far under every rung that would make a goal.
    """
    scores, left = trial.scores, trial.epochs_left
    if not scores or (len(scores) < 2 and left):
        return None
    slope = max(0.0, scores[-1] - scores[-2]) if left else 0.0
    return scores[-1] + left * slope + Z_TWO_SIDED_95 * sqrt(scores[-1] * (1 - scores[-1]) / num_rows)


def can_still_reach(trial: TrialScores, *, to_beat: float, num_rows: int) -> bool:
    """False when a trial with epochs left has a hopeful end under `to_beat`."""
    end = optimistic_final_score(trial, num_rows=num_rows)
    return trial.epochs_left == 0 or end is None or end >= to_beat


def sweep_futility(trials: Sequence[TrialScores], *, num_trials: int, to_beat: float, num_rows: int) -> str | None:
    """Why the whole sweep may end, or None while it goes on.

    It ends when four trials' hopeful ends are known, all of them lie under `to_beat`, and so does the upper end of the
    95 % prediction interval, one-sided, of the best end among the other trials of `num_trials`, which are taken to
    come from the same normal distribution: mean + t s sqrt(1 + 1/k), t being Student's quantile at 1 - 0.05 / others
    with k - 1 degrees of freedom (Hahn, Factors for calculating two-sided prediction intervals, JASA 64, 1969; for the
    best of several by Bonferroni). Trials that learn nothing widen the interval, so the sweep goes on rather than end
    too soon. Not in it: that the search may learn to choose better than it did so far (Optuna's first ten are random).
    """
    known = [optimistic_final_score(trial, num_rows=num_rows) for trial in trials]
    ends = [end for end in known if end is not None]
    others = num_trials - len(ends)
    if len(ends) < MIN_FINAL_SCORES or others < 1 or max(ends) >= to_beat:
        return None
    from scipy.stats import t  # takes half a second to import

    quantile = float(t.ppf(1 - ALPHA / others, df=len(ends) - 1))
    limit = mean(ends) + quantile * stdev(ends) * sqrt(1 + 1 / len(ends))
    if limit >= to_beat:
        return None
    return (
        f"{to_beat:.3f} is out of reach: {len(ends)} trials end at {max(ends):.3f} at most, and the best of "
        f"{others} others under {max(limit, *ends):.3f} (95 % prediction limit)"
    )
