"""Futility rules: stop a trial or the whole sweep if it cannot reach the target. Pure functions of
scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from tailorbird.evaluation.baselines.baseline import Baseline, select_incumbent
from tailorbird.evaluation.statistics.scoring import HIGHEST_SCORE
from tailorbird.registry.kinds import spec_of

Z_TWO_SIDED_95 = 1.96
MIN_FINAL_SCORES = 4
"""Trials with an estimated final score before a sweep may end. Fewer trials do not show how much
scores vary."""
# probability that a sweep ends although one of its remaining trials would have reached the target
ALPHA = 0.05


@dataclass(frozen=True)
class Target:
    """The validation score that a candidate must reach, with the baselines from which it is
    computed."""

    baselines: Mapping[str, float]  # validation scores by kind of baseline
    # score of the incumbent, or of the best baseline without a bag of words, plus the minimum gain
    to_beat: float
    text: str  # `to_beat` with its origin, for messages


@dataclass(frozen=True)
class TrialScores:
    """Scores of a trial."""

    scores: Sequence[float]  # validation score after each finished epoch
    epochs_left: int


def set_target(baselines: Sequence[Baseline], *, minimum_gain: float) -> Target:
    """Return the validation score that a trial must reach: that of the incumbent plus
    `minimum_gain`, at most 1.

    If the incumbent is a baseline with a bag of words, the best baseline without one takes its
    place, because the best trial will be mixed with the bag of words too. Requires at least one
    servable baseline.
    """
    incumbent = select_incumbent(baselines)
    if spec_of(incumbent.kind).has_bag:
        servable = [baseline for baseline in baselines if baseline.servable]
        without_bag = [each for each in servable if not spec_of(each.kind).has_bag]
        incumbent = max(without_bag, key=lambda each: each.validation, default=incumbent)
    to_beat = min(incumbent.validation + minimum_gain, HIGHEST_SCORE)
    limit = ", at most 1" if to_beat == HIGHEST_SCORE else ""
    scores = {baseline.kind: baseline.validation for baseline in baselines}
    return Target(scores, to_beat, f"{to_beat:.3f} ({incumbent.kind} + {minimum_gain:g}{limit})")


def optimistic_final_score(trial: TrialScores, *, num_rows: int) -> float | None:
    """Return an upper estimate of the score after a trial's last epoch.

    The estimate assumes that each remaining epoch gains as much as the latest epoch (later epochs
    usually gain less, because accuracy curves flatten), and that the measured score is 1.96
    standard errors too low (sqrt(p (1 - p) / `num_rows`)). Return None after the first of several
    epochs, because the slope is unknown. The score of a trial that has hardly started to learn can
    exceed the estimate: a recorded trial scored 0.18, 0.12 and then 0.28, but stayed far below
    every baseline.
    """
    scores = trial.scores
    epochs_left = trial.epochs_left
    if not scores or (len(scores) < 2 and epochs_left):
        return None
    slope = max(0.0, scores[-1] - scores[-2]) if epochs_left else 0.0
    return (
        scores[-1]
        + epochs_left * slope
        + Z_TWO_SIDED_95 * sqrt(scores[-1] * (1 - scores[-1]) / num_rows)
    )


def can_still_reach(trial: TrialScores, *, to_beat: float, num_rows: int) -> bool:
    """Return False if a trial has epochs left and its optimistic final score is below `to_beat`."""
    final = optimistic_final_score(trial, num_rows=num_rows)
    return trial.epochs_left == 0 or final is None or final >= to_beat


def sweep_futility(
    trials: Sequence[TrialScores], *, num_trials: int, to_beat: float, num_rows: int
) -> str | None:
    """Return the reason to end the whole sweep, or None to continue.

    The sweep ends if three conditions hold:

    1. At least four trials have an optimistic final score (k in the formula below).
    2. All these scores are below `to_beat`.
    3. The one-sided 95% prediction limit for the best of the other trials is below `to_beat`. It
       assumes that all scores come from one normal distribution: mean + t * s * sqrt(1 + 1/k),
       where t is Student's quantile at 1 - 0.05 / (number of other trials) with k - 1 degrees of
       freedom (Hahn, Factors for calculating two-sided prediction intervals, JASA 64, 1969;
       Bonferroni correction for the best of several).

    Trials that learn nothing widen the interval, so the sweep continues rather than ends too early.
    The limit ignores that the search may sample better configurations later (Optuna's first ten are
    random).
    """
    estimates = [optimistic_final_score(trial, num_rows=num_rows) for trial in trials]
    finals = [final for final in estimates if final is not None]
    num_left = num_trials - len(finals)
    if len(finals) < MIN_FINAL_SCORES or num_left < 1 or max(finals) >= to_beat:
        return None
    from scipy.stats import t  # takes half a second to import

    quantile = float(t.ppf(1 - ALPHA / num_left, df=len(finals) - 1))
    limit = mean(finals) + quantile * stdev(finals) * sqrt(1 + 1 / len(finals))
    if limit >= to_beat:
        return None
    return (
        f"{to_beat:.3f} is out of reach: {len(finals)} trials reach at most {max(finals):.3f}, and "
        f"the best of the other {num_left} at most {max(limit, *finals):.3f} "
        "(95% prediction limit)"
    )
