"""Futility rules: whether a trial, or the whole sweep, can still reach the target. Pure functions of scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from tailorbird.evaluation.baselines.baseline import Baseline, select_incumbent

Z_TWO_SIDED_95 = 1.96
MIN_FINAL_SCORES = 4  # trials with a known final score before a sweep may end: fewer do not show how much trials vary
ALPHA = 0.05  # probability that a sweep is ended although one of its further trials would have reached the target


@dataclass(frozen=True)
class Target:
    """The score on validation from which a change of model can be worth it, and the baselines that it comes from."""

    baselines: Mapping[str, float]  # each baseline's score on validation, by its kind
    to_beat: float  # the incumbent's score and the minimum gain, or the bag-of-words reference's where that is higher
    text: str  # `to_beat` in words


@dataclass(frozen=True)
class TrialScores:
    """The scores of a trial so far."""

    scores: Sequence[float]  # on validation, after each epoch
    epochs_left: int


def set_target(baselines: Sequence[Baseline], *, minimum_gain: float) -> Target:
    """Return the score on validation that the verdict will require of the candidate.

    It is `minimum_gain` over the incumbent, and no less than the best baseline of all: the bag-of-words reference
    cannot serve, but must be beaten too. At least one baseline is servable.
    """
    incumbent = select_incumbent(baselines)
    best = max(baselines, key=lambda baseline: baseline.validation)
    to_beat, text = incumbent.validation + minimum_gain, f"{incumbent.kind} and {minimum_gain:g}"
    if best.validation > to_beat:
        to_beat, text = best.validation, best.kind
    scores = {baseline.kind: baseline.validation for baseline in baselines}
    return Target(scores, to_beat, f"{to_beat:.3f} ({text})")


def optimistic_final_score(trial: TrialScores, *, num_rows: int) -> float | None:
    """Return an upper estimate of the score after a trial's last epoch; None after one epoch of several.

    It assumes that each remaining epoch gains as much as the latest one (accuracy curves flatten, so later epochs
    usually gain less), and that the score was measured 1.96 standard errors too low (sqrt(p (1 - p) / `num_rows`)).
    After one epoch the slope is unknown. A training that has hardly begun to learn may exceed it: a recorded one went
    from 0.18 by 0.12 to 0.28, and stayed far below every baseline.
    """
    scores, epochs_left = trial.scores, trial.epochs_left
    if not scores or (len(scores) < 2 and epochs_left):
        return None
    slope = max(0.0, scores[-1] - scores[-2]) if epochs_left else 0.0
    return scores[-1] + epochs_left * slope + Z_TWO_SIDED_95 * sqrt(scores[-1] * (1 - scores[-1]) / num_rows)


def can_still_reach(trial: TrialScores, *, to_beat: float, num_rows: int) -> bool:
    """Return False if a trial has epochs left and its optimistic final score is below `to_beat`."""
    final = optimistic_final_score(trial, num_rows=num_rows)
    return trial.epochs_left == 0 or final is None or final >= to_beat


def sweep_futility(trials: Sequence[TrialScores], *, num_trials: int, to_beat: float, num_rows: int) -> str | None:
    """Return why the whole sweep is ended, or None if it continues.

    It ends when four optimistic final scores are known, all of them are below `to_beat`, and so is the upper end of the
    one-sided 95 % prediction interval for the best of the other trials of `num_trials`, assuming that all come from one
    normal distribution: mean + t s sqrt(1 + 1/k), t being Student's quantile at 1 - 0.05 / others with k - 1 degrees of
    freedom (Hahn, Factors for calculating two-sided prediction intervals, JASA 64, 1969; for the best of several by
    Bonferroni). Trials that learn nothing widen the interval, so the sweep continues rather than ends too early. Not
    included: the search may sample better configurations later (Optuna's first ten are random).
    """
    estimates = [optimistic_final_score(trial, num_rows=num_rows) for trial in trials]
    finals = [final for final in estimates if final is not None]
    others = num_trials - len(finals)
    if len(finals) < MIN_FINAL_SCORES or others < 1 or max(finals) >= to_beat:
        return None
    from scipy.stats import t  # takes half a second to import

    quantile = float(t.ppf(1 - ALPHA / others, df=len(finals) - 1))
    limit = mean(finals) + quantile * stdev(finals) * sqrt(1 + 1 / len(finals))
    if limit >= to_beat:
        return None
    return (
        f"{to_beat:.3f} is out of reach: {len(finals)} trials end at {max(finals):.3f} at most, and the best of "
        f"{others} others under {max(limit, *finals):.3f} (95 % prediction limit)"
    )
