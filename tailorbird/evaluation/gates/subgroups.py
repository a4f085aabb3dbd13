"""The groups gate: compare candidate and incumbent in each group of test rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.predictions import ROW_METRICS, Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics.bootstrap import ResampledGain, macro_f1_gain
from tailorbird.evaluation.statistics.distributions import t_cdf, t_isf
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS, Documents, document_effect, documents_of
from tailorbird.evaluation.statistics.effect import Effect
from tailorbird.evaluation.statistics.paired import (
    PairedCounts,
    holm,
    mcnemar_midp,
    newcombe_paired_interval,
    paired_counts,
)
from tailorbird.evaluation.statistics.power import MAX_ROWS, observed_precision, plain_rows_needed, rows_by_normal

FloatArray = NDArray[np.float64]

NUM_PERMUTATIONS = 1_000
SEED = 1979
FALSE_REFUSALS = 0.05
"""Largest share of candidates with the same gain in every group that a likely loss in some group may refuse."""
LEAST_LEVEL = 1e-9


@dataclass(frozen=True)
class Gap:
    """The difference between the largest and the smallest group mean, and its distribution by chance."""

    observed: float
    usual: float  # median gap when group membership is shuffled
    p_value: float  # share of shuffles with a gap at least as large, with 1 added to count and total


@dataclass(frozen=True)
class MeanChange:
    """The differences of per-row scores in a group, if rows share documents or scores are not 0 or 1.

    It has the same properties as `PairedCounts` and `ResampledGain`.
    """

    differences: FloatArray
    documents: Documents  # a document for each row if rows are independent

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def gain(self) -> float:
        return float(np.mean(self.differences))

    @property
    def num_units(self) -> int:
        return self.documents.num

    def effect(self, *, alpha: float) -> Effect:
        return document_effect(self.differences, documents=self.documents, alpha=alpha)


Change = PairedCounts | MeanChange | ResampledGain


def groups_gate(
    candidate: Predictions,
    *,
    incumbent: Predictions,
    limits: SubgroupGateConfig,
    alpha: float,
    metric: str = "accuracy",
) -> Gate:
    """Test the paired change of the metric in each value of each group column, including missing values.

    Macro-F1 in a group is that of the group's rows, over the classes that occur among them. The bounds are those of
    `group_bounds`. Raises VerdictRefused if rows or groups differ, ValueError for invalid scores.
    """
    align(candidate, incumbent)
    if candidate.groups != incumbent.groups:
        raise VerdictRefused(f"{candidate.model} and {incumbent.model} differ in their groups; predict the same rows")
    for predictions in (candidate, incumbent):
        if (metric in ROW_METRICS or metric == "macro_f1") and not np.isin(predictions.scores, (0.0, 1.0)).all():
            raise ValueError(f"{predictions.model} has scores other than 0 and 1; {metric} by group needs 0 or 1")
    columns = {
        name: {value: np.flatnonzero(np.array(values, dtype=object) == value) for value in sorted(set(values))}
        for name, values in sorted(candidate.groups.items())
    }
    by_row = "accuracy" if metric == "macro_f1" else metric
    ours, theirs = candidate.per_row(by_row), incumbent.per_row(by_row)

    def change(members: NDArray[np.int64]) -> Change:
        if metric == "macro_f1":
            return macro_f1_gain(candidate, other=incumbent, rows=members)
        if metric in ROW_METRICS and candidate.clusters is None:
            return paired_counts(ours[members], other=theirs[members])
        clusters = None if candidate.clusters is None else [candidate.clusters[row] for row in members]
        documents = documents_of(clusters, num_rows=len(members))
        return MeanChange(ours[members] - theirs[members], documents)

    tables = {f"{name} = {value}": change(rows) for name, groups in columns.items() for value, rows in groups.items()}
    if not tables:
        return gate("groups", (), note="the recipe names no column in data.groups")
    bounds = group_bounds(tables, limits=limits, alpha=alpha)
    what = "accuracies" if by_row in ROW_METRICS else "scores"
    notes = [
        _gap_note(column, groups=list(groups.values()), scores={what: ours, "changes": ours - theirs})
        for column, groups in columns.items()
    ]
    proven = [
        name for name, harm in zip(tables, proven_harmed(list(tables.values()), alpha=alpha), strict=True) if harm
    ]
    summary = f"groups proven worse (Holm over {len(tables)} groups): {', '.join(proven) or 'none'}"
    return gate("groups", bounds, note="; ".join([summary, *notes]))


def group_bounds(tables: Mapping[str, Change], *, limits: SubgroupGateConfig, alpha: float) -> list[Bound]:
    """Return a bound for each group. The first condition that holds decides, at every number of rows:

    - The group fails if it is proven harmed (`proven_harmed`).
    - The group fails if its estimate is a loss of `max_loss` or more, and its one-sided interval at the level
      `harm_level` is below 0. A large loss need not be proven, but must be likely.
    - The group passes if its unadjusted interval is above -`max_loss`.
    - Otherwise it is not assessable; `rows_needed` give 80% power if the true change is 0.

    The intervals are unadjusted: Newcombe's for accuracy and exact match of independent rows, those of the bootstrap
    for macro-F1, Student's t over documents otherwise (`statistics.documents`).
    """
    level = 2 * harm_level(list(tables.values()), limits=limits, alpha=alpha)
    harmed = proven_harmed(list(tables.values()), alpha=alpha)
    shrunken = shrunken_changes([_estimate(change, alpha=alpha) for change in tables.values()])
    bounds = []
    for (name, change), harm, pooled in zip(tables.items(), harmed, shrunken, strict=True):
        interval, needed = _interval(change, alpha=alpha), None
        lost = level > 0 and change.gain <= -limits.max_loss and _interval(change, alpha=level)[1] < 0
        if harm or lost:
            state = State.FAILS
        elif interval[0] > -limits.max_loss:
            state = State.PASSES
        else:
            state = State.NOT_ASSESSABLE
            needed = max(change.n + 1, rows_needed(change, max_loss=limits.max_loss, alpha=alpha))
        bounds.append(
            Bound(f"change for {name}", change.gain, interval, -limits.max_loss, change.n, state, needed, pooled)
        )
    return bounds


def harm_level(changes: Sequence[Change], *, limits: SubgroupGateConfig, alpha: float) -> float:
    """Return the one-sided level at which a loss is likely, from the observed changes (`likely_level`)."""
    changes = [change for change in changes if isinstance(change, PairedCounts) or change.num_units >= LEAST_DOCUMENTS]
    if not changes:
        return 0.0
    return likely_level(
        float(np.average([change.gain for change in changes], weights=[change.n for change in changes])),
        errors=np.array([_estimate(change, alpha=alpha)[1] for change in changes]),
        freedom=np.array([_degrees_of_freedom(change, alpha=alpha) for change in changes]),
        limits=limits,
    )


def likely_level(gain: float, *, errors: FloatArray, freedom: FloatArray, limits: SubgroupGateConfig) -> float:
    """Return `likely_harm`, or a lower level if that refuses too many candidates.

    Too many means that chance fails more than `FALSE_REFUSALS` of the candidates with the same gain in every group, at
    least 0, whose estimates have these standard errors [K] and follow Student's t with these degrees of freedom [K].
    """
    assessable = np.isfinite(errors)  # too few documents have an infinite standard error
    if not limits.likely_harm or not assessable.any():
        return 0.0
    errors, freedom, gain = errors[assessable], freedom[assessable], max(gain, 0.0)

    def excess(log_level: float) -> float:
        least = np.maximum(t_isf(np.exp(log_level), freedom) * errors, limits.max_loss)
        return 1 - float(np.prod(t_cdf((least + gain) / errors, freedom))) - FALSE_REFUSALS

    highest = np.log(limits.likely_harm)
    lowest = min(np.log(LEAST_LEVEL), highest)
    if excess(highest) <= 0:
        return limits.likely_harm
    return LEAST_LEVEL if excess(lowest) > 0 else float(np.exp(brentq(excess, lowest, highest)))


def shrunken_changes(estimates: Sequence[tuple[float, float]]) -> list[float]:
    """Return each group's change shrunken to the mean of all groups, from pairs of change and standard error.

    The best linear predictor with the variance between groups of Paule and Mandel, Journal of Research of the National
    Bureau of Standards 87:377-385 (1982). Groups that differ by no more than chance have the same shrunken change.
    """
    changes, errors = np.array(estimates).T
    if len(changes) == 1:
        return [float(changes[0])]
    between = _variance_between(changes, errors**2)
    weights = 1 / (errors**2 + between)
    own, mean = between / (between + errors**2), float(np.sum(weights / weights.sum() * changes))
    return [float(change) for change in own * changes + (1 - own) * mean]


def _variance_between(changes: FloatArray, variances: FloatArray) -> float:
    """Return the variance b between groups for which the sum of (change - mean)^2 / (variance + b) is G - 1, or 0.

    By Newton's method, as in DerSimonian and Kacker, Contemporary Clinical Trials 28:105-114 (2007). A function of
    statsmodels gives the same, but takes two seconds to import; a test compares the two.
    """
    between = 0.0
    for _ in range(50):
        weights = 1 / (variances + between)
        squares = (changes - weights @ changes / weights.sum()) ** 2
        excess = float(weights @ squares) - (len(changes) - 1)
        if excess < 0:
            return 0.0
        if excess <= 1e-5:
            break
        between += excess / float(weights**2 @ squares)
    return between


def proven_harmed(tables: Sequence[Change], *, alpha: float) -> list[bool]:
    """Return True for each group that is significant by Holm's step-down and whose interval is below 0.

    With G groups, the group at position k (from 0) in the order of p has the level alpha / (G - k). The step-down stops
    at the first group whose p is not below its level. Equal p values have equal levels. Holm, Scandinavian Journal of
    Statistics 6:65-70 (1979).
    """
    p_values = [_p_value(counts, alpha=alpha) for counts in tables]
    ordered = sorted(p_values)
    harmed = []
    for counts, p_value, adjusted in zip(tables, p_values, holm(p_values), strict=True):
        level = alpha / (len(tables) - ordered.index(p_value))
        harmed.append(adjusted < alpha and _interval(counts, alpha=level)[1] < 0)
    return harmed


def rows_needed(counts: Change, *, max_loss: float, alpha: float) -> int:
    """Return the rows with which a group without a true change passes in 80% of tests, at the observed discordance.

    About 1,300 rows for 3 points at a discordance of 0.15.
    """
    if isinstance(counts, PairedCounts):
        discordance = max(counts.discordance, 1 / counts.n)  # assume at least one discordant row
        return plain_rows_needed(max_loss, discordance=discordance, alpha=alpha)
    effect = counts.effect(alpha=alpha)
    if effect.standard_error == 0:  # no difference: the interval is the rate of unseen events (`unseen_rate`)
        num_units = math.log(alpha / 2) / math.log(1 - max_loss)
        return math.ceil(math.ceil(num_units) * counts.n / counts.num_units)
    precision = observed_precision(
        counts.n,
        num_units=counts.num_units,
        standard_error=effect.standard_error,
        degrees_of_freedom=effect.degrees_of_freedom,
    )
    return rows_by_normal(precision, gains=(max_loss, 0.0), alpha=alpha).rows or MAX_ROWS


def _p_value(change: Change, *, alpha: float) -> float:
    if isinstance(change, PairedCounts):
        return mcnemar_midp(change)
    return change.effect(alpha=alpha).p_value


def _interval(change: Change, *, alpha: float) -> tuple[float, float]:
    if isinstance(change, PairedCounts):
        return newcombe_paired_interval(change, alpha=alpha)
    return change.effect(alpha=alpha).interval


def _estimate(change: Change, *, alpha: float) -> tuple[float, float]:
    """Return the change and its standard error, of at least one discordant row or document."""
    if isinstance(change, PairedCounts):
        variance = (max(change.discordance, 1 / change.n) - change.gain**2) / change.n
        return change.gain, max(np.sqrt(max(variance, 0.0)), 1 / change.n)
    return change.gain, max(change.effect(alpha=alpha).standard_error, 1 / change.n)


def _degrees_of_freedom(change: Change, *, alpha: float) -> float:
    freedom = None if isinstance(change, PairedCounts) else change.effect(alpha=alpha).degrees_of_freedom
    return np.inf if freedom is None else freedom


def gap(values: FloatArray, *, groups: Sequence[NDArray[np.int64]]) -> Gap:
    """Return the gap between the group means of values [N], and its distribution under random membership.

    `groups` are the row positions of at least two groups. Each of 1,000 shuffles draws how often each distinct value is
    in each group (hypergeometric), which is all that a mean needs.
    """
    distinct, counts = np.unique(np.concatenate([values[members] for members in groups]), return_counts=True)
    sizes = np.array([len(members) for members in groups])
    observed = float(np.ptp([values[members].mean() for members in groups]))
    generator = np.random.default_rng(SEED)
    left = np.tile(counts, (NUM_PERMUTATIONS, 1))
    means = np.empty((NUM_PERMUTATIONS, len(groups)))
    for index, size in enumerate(sizes):
        drawn = _drawn(generator, left, size=int(size))
        means[:, index] = drawn @ distinct / size
        left -= drawn
    # The tolerance is needed because means of equal values may differ in the last bit.
    spreads = np.ptp(means, axis=1)
    as_large = int(np.sum(spreads >= observed - 1e-12))
    return Gap(observed, float(np.median(spreads)), (as_large + 1) / (NUM_PERMUTATIONS + 1))


def _drawn(generator: np.random.Generator, left: NDArray[np.int64], *, size: int) -> NDArray[np.int64]:
    """Return the counts [K, V] of each value among `size` rows drawn at random from the counts `left` [K, V]."""
    drawn, wanted, others = np.zeros_like(left), np.full(len(left), size), left.sum(1)
    for value in range(left.shape[1]):
        others = others - left[:, value]
        drawn[:, value] = generator.hypergeometric(left[:, value], others, wanted)
        wanted = wanted - drawn[:, value]
    return drawn


def _gap_note(column: str, *, groups: list[NDArray[np.int64]], scores: dict[str, FloatArray]) -> str:
    if len(groups) < 2:
        return f"{column} has a single group"
    sentences = []
    for what, values in scores.items():
        test = gap(values, groups=groups)
        chance = f"{100 * test.usual:.1f} expected by chance, p = {test.p_value:.3f}"
        sentences.append(f"{what} differ by {100 * test.observed:.1f} points ({chance})")
    return f"{column}: between groups, {' and '.join(sentences)}"
