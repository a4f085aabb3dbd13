"""The groups gate: whether the candidate serves any group of the test rows worse than the incumbent."""

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
from tailorbird.evaluation.statistics.power import MOST_ROWS, plain_rows_needed, rows_by_normal

FloatArray = NDArray[np.float64]

NUM_PERMUTATIONS = 1_000
SEED = 1979


@dataclass(frozen=True)
class Gap:
    """Largest minus smallest of the groups' means, and what chance alone gives."""

    observed: float
    usual: float  # median of the gaps under shuffled membership
    p_value: float  # share of the shuffles with a gap at least as large, one added to count and total


@dataclass(frozen=True)
class MeanChange:
    """Rows of a group by a per-row score in [0, 1], where they share documents or it is more than right or wrong; reads
    like `PairedCounts`."""

    ours: FloatArray
    theirs: FloatArray
    clusters: tuple[str, ...] | None = None  # the document of each row, where rows share some

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
    """Evaluate the paired change in the metric in each value of each group column, a missing value's group included.

    Of each group the first that holds decides: it fails if it is proven harmed (p within Holm's step-down over all
    groups, and the upper end at its level of the step-down under 0), or if its change is a loss of `max_loss` or more
    on at least `min_rows` rows; it passes if its unadjusted lower end is over -`max_loss`; else it is not assessable.
    The bounds have the unadjusted intervals: Newcombe's for accuracy and exact match of independent rows, else the
    paired bootstrap's. Raises VerdictRefused if rows or groups differ, ValueError for invalid scores.
    """
    align(candidate, incumbent)
    if candidate.groups != incumbent.groups:
        raise VerdictRefused(f"{candidate.model} and {incumbent.model} differ in their groups; predict the same rows")
    for predictions in (candidate, incumbent):
        if metric in ROW_METRICS and not np.isin(predictions.scores, (0.0, 1.0)).all():
            raise ValueError(f"{predictions.model}: groups are compared by scores of 0 and 1; other scores are there")
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
        return gate("groups", (), note="the recipe's data.groups names no column, so no group could be looked at")
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
    summary = f"proven worse after Holm over {len(tables)} groups: {', '.join(proven) or 'none'}"
    return gate("groups", bounds, note="; ".join([summary, *notes]))


def proven_harmed(tables: Sequence[Change], *, alpha: float) -> list[bool]:
    """Return for each group whether Holm's step-down reaches it and its upper end at its level is under 0.

    Holm, Scandinavian Journal of Statistics 6:65-70 (1979): with G groups the one that k others precede in p has the
    level alpha / (G - k), and none is reached behind the first whose p is not under its level. Equal p, equal level.
    """
    p_values = [_p_value(counts, alpha=alpha) for counts in tables]
    ordered = sorted(p_values)
    harmed = []
    for counts, p_value, adjusted in zip(tables, p_values, holm(p_values), strict=True):
        level = alpha / (len(tables) - ordered.index(p_value))
        harmed.append(adjusted < alpha and _interval(counts, alpha=level)[1] < 0)
    return harmed


def group_bound(name: str, *, counts: Change, harmed: bool, limits: SubgroupGateConfig, alpha: float) -> Bound:
    """Return a group's bound by the gate's rule; `rows_needed` are those of an unharmed group, with 80 % power."""
    interval = _interval(counts, alpha=alpha)
    needed = None
    # Only here a point estimate decides: a loss seen on this many rows is not waved through for want of more.
    if harmed or (counts.gain <= -limits.max_loss and counts.n >= limits.min_rows):
        state = State.FAILS
    elif interval[0] > -limits.max_loss:
        state = State.PASSES
    else:
        state = State.NOT_ASSESSABLE
        needed = max(counts.n + 1, rows_needed(counts, max_loss=limits.max_loss, alpha=alpha))
    return Bound(f"change in {name}", counts.gain, interval, -limits.max_loss, counts.n, state, needed)


def rows_needed(counts: Change, *, max_loss: float, alpha: float) -> int:
    """Return the rows on which a group of this discordance and no change passes, 8 times in 10.

    About 1,300 for 3 points at a discordance of 0.15.
    """
    if isinstance(counts, PairedCounts):  # if no row was discordant, one is supposed: none at all would need no rows
        discordance = max(counts.discordance, 1 / counts.n)
        return plain_rows_needed(max_loss, discordance=discordance, alpha=alpha)
    error, units = max(counts.effect(alpha=alpha).standard_error, 1 / counts.num_units), counts.num_units
    needed = rows_by_normal(counts.n, num_units=units, error=error, gains=(max_loss, 0.0), alpha=alpha)
    return needed.rows or MOST_ROWS


def _p_value(change: Change, *, alpha: float) -> float:
    if isinstance(change, PairedCounts):
        return mcnemar_midp(change)
    return change.effect(alpha=alpha).p_value


def _interval(change: Change, *, alpha: float) -> tuple[float, float]:
    if isinstance(change, PairedCounts):
        return newcombe_paired_interval(change, alpha=alpha)
    return change.effect(alpha=alpha).interval


def gap(values: FloatArray, *, groups: Sequence[NDArray[np.int64]]) -> Gap:
    """Return how far the groups' means of values [N] are apart, and how far they would be if membership were random.

    `groups` are the rows of each group, at least two groups. Of each of 1,000 shuffles only what a mean needs is drawn:
    how often each of the few distinct values falls to each group, which is hypergeometric.
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
    # the mean of equal values may differ in the last bit.
    spreads = np.ptp(means, axis=1)
    as_large = int(np.sum(spreads >= observed - 1e-12))
    return Gap(observed, float(np.median(spreads)), (as_large + 1) / (NUM_PERMUTATIONS + 1))


def _drawn(generator: np.random.Generator, left: NDArray[np.int64], *, size: int) -> NDArray[np.int64]:
    """Return how many of each value [K, V] are among `size` rows drawn at random from those that are left [K, V]."""
    drawn, wanted, others = np.zeros_like(left), np.full(len(left), size), left.sum(1)
    for value in range(left.shape[1]):
        others = others - left[:, value]
        drawn[:, value] = generator.hypergeometric(left[:, value], others, wanted)
        wanted = wanted - drawn[:, value]
    return drawn


def _gap_note(column: str, *, groups: list[NDArray[np.int64]], scores: dict[str, FloatArray]) -> str:
    if len(groups) < 2:
        return f"{column} has one group, so no gap"
    sentences = []
    for what, values in scores.items():
        test = gap(values, groups=groups)
        chance = f"by chance {100 * test.usual:.1f}, p = {test.p_value:.3f}"
        sentences.append(f"{what} differ by {100 * test.observed:.1f} points ({chance})")
    return f"{column}: between groups {' and '.join(sentences)}"
