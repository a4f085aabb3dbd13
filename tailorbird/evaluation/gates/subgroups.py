"""The groups gate: compare candidate and incumbent in each group of test rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.predictions import ROW_METRICS, Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics.bootstrap import Effect
from tailorbird.evaluation.statistics.paired import (
    PairedCounts,
    holm,
    mcnemar_midp,
    mean_change,
    newcombe_paired_interval,
    paired_counts,
)
from tailorbird.evaluation.statistics.power import MAX_ROWS, plain_rows_needed, rows_by_normal

FloatArray = NDArray[np.float64]

NUM_PERMUTATIONS = 1_000
SEED = 1979


@dataclass(frozen=True)
class Gap:
    """The difference between the largest and the smallest group mean, and its distribution by chance."""

    observed: float
    usual: float  # median gap when group membership is shuffled
    p_value: float  # share of shuffles with a gap at least as large, with 1 added to count and total


@dataclass(frozen=True)
class MeanChange:
    """The per-row scores in [0, 1] of a group, if rows share documents or scores are not 0 or 1.

    It has the same properties as `PairedCounts`.
    """

    ours: FloatArray
    theirs: FloatArray
    clusters: tuple[str, ...] | None = None  # document of each row, if rows share documents

    @property
    def n(self) -> int:
        return len(self.ours)

    @property
    def num_units(self) -> int:
        return self.n if self.clusters is None else len(set(self.clusters))

    @property
    def gain(self) -> float:
        return float(np.mean(self.ours - self.theirs))

    def effect(self, *, alpha: float) -> Effect:
        return mean_change(self.ours, self.theirs, alpha=alpha, clusters=self.clusters)


Change = PairedCounts | MeanChange


def groups_gate(
    candidate: Predictions,
    *,
    incumbent: Predictions,
    limits: SubgroupGateConfig,
    alpha: float,
    metric: str = "accuracy",
) -> Gate:
    """Test the paired change of the metric in each value of each group column, including missing values.

    For each group, the first condition that holds decides:

    - The group fails if it is proven harmed: its p value is significant by Holm's step-down over all groups, and its
      interval at the level of its step is below 0.
    - The group fails if it loses `max_loss` or more on at least `min_rows` rows.
    - The group passes if its unadjusted interval is above -`max_loss`.
    - Otherwise it is not assessable.

    The bounds have unadjusted intervals: Newcombe's for accuracy and exact match of independent rows, paired bootstrap
    otherwise. Raises VerdictRefused if rows or groups differ, ValueError for invalid scores.
    """
    align(candidate, incumbent)
    if candidate.groups != incumbent.groups:
        raise VerdictRefused(f"{candidate.model} and {incumbent.model} differ in their groups; predict the same rows")
    for predictions in (candidate, incumbent):
        if metric in ROW_METRICS and not np.isin(predictions.scores, (0.0, 1.0)).all():
            raise ValueError(f"{predictions.model} has scores other than 0 and 1; {metric} by group needs 0 or 1")
    columns = {
        name: {value: np.flatnonzero(np.array(values, dtype=object) == value) for value in sorted(set(values))}
        for name, values in sorted(candidate.groups.items())
    }
    ours, theirs = candidate.per_row(metric), incumbent.per_row(metric)

    def change(members: NDArray[np.int64]) -> Change:
        clusters = candidate.clusters
        if metric in ROW_METRICS and clusters is None:
            return paired_counts(ours[members], other=theirs[members])
        shared = None if clusters is None else tuple(clusters[row] for row in members)
        return MeanChange(ours[members], theirs[members], shared)

    tables = {f"{name} = {value}": change(rows) for name, groups in columns.items() for value, rows in groups.items()}
    if not tables:
        return gate("groups", (), note="the recipe names no column in data.groups")
    harmed = proven_harmed(list(tables.values()), alpha=alpha)
    bounds = [
        group_bound(name, counts=counts, harmed=harm, limits=limits, alpha=alpha)
        for (name, counts), harm in zip(tables.items(), harmed, strict=True)
    ]
    what = "accuracies" if metric in ROW_METRICS else "scores"
    notes = [
        _gap_note(column, groups=list(groups.values()), scores={what: ours, "changes": ours - theirs})
        for column, groups in columns.items()
    ]
    proven = [name for name, harm in zip(tables, harmed, strict=True) if harm]
    summary = f"groups proven worse (Holm over {len(tables)} groups): {', '.join(proven) or 'none'}"
    return gate("groups", bounds, note="; ".join([summary, *notes]))


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


def group_bound(name: str, *, counts: Change, harmed: bool, limits: SubgroupGateConfig, alpha: float) -> Bound:
    """Return the bound of a group; its `rows_needed` give 80% power if the true change is 0."""
    interval = _interval(counts, alpha=alpha)
    needed = None
    # A point estimate decides only here: a large observed loss must not pass because the rows are too few to prove it.
    if harmed or (counts.gain <= -limits.max_loss and counts.n >= limits.min_rows):
        state = State.FAILS
    elif interval[0] > -limits.max_loss:
        state = State.PASSES
    else:
        state = State.NOT_ASSESSABLE
        needed = max(counts.n + 1, rows_needed(counts, max_loss=limits.max_loss, alpha=alpha))
    return Bound(f"change for {name}", counts.gain, interval, -limits.max_loss, counts.n, state, needed)


def rows_needed(counts: Change, *, max_loss: float, alpha: float) -> int:
    """Return the rows with which a group without a true change passes in 80% of tests, at the observed discordance.

    About 1,300 rows for 3 points at a discordance of 0.15.
    """
    if isinstance(counts, PairedCounts):
        discordance = max(counts.discordance, 1 / counts.n)  # assume at least one discordant row
        return plain_rows_needed(max_loss, discordance=discordance, alpha=alpha)
    error, units = max(counts.effect(alpha=alpha).standard_error, 1 / counts.num_units), counts.num_units
    needed = rows_by_normal(counts.n, num_units=units, error=error, gains=(max_loss, 0.0), alpha=alpha)
    return needed.rows or MAX_ROWS


def _p_value(change: Change, *, alpha: float) -> float:
    if isinstance(change, PairedCounts):
        return mcnemar_midp(change)
    return change.effect(alpha=alpha).p_value


def _interval(change: Change, *, alpha: float) -> tuple[float, float]:
    if isinstance(change, PairedCounts):
        return newcombe_paired_interval(change, alpha=alpha)
    return change.effect(alpha=alpha).interval


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
