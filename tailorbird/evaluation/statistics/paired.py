"""Paired statistics of two models on the same rows: McNemar, Newcombe, Wilson; `compare` by any
metric."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.predictions import Predictions, align
from tailorbird.evaluation.statistics.class_metrics import class_metric_effect
from tailorbird.evaluation.statistics.distributions import norm_isf
from tailorbird.evaluation.statistics.documents import (
    LEAST_DOCUMENTS,
    document_effect,
    documents_of,
)
from tailorbird.evaluation.statistics.effect import Effect, unseen_rate, with_unseen
from tailorbird.evaluation.statistics.means import likelihood_interval, mean_effect
from tailorbird.evaluation.statistics.scoring import score_table

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class PairedCounts:
    """Numbers of rows on which the candidate and the other model are right."""

    both_right: int
    only_candidate_right: int
    only_other_right: int
    neither_right: int

    def __post_init__(self) -> None:
        if min(self.cells) < 0 or self.n == 0:
            raise ValueError(
                f"paired counts are {self.cells}; give counts of 0 or more for at least one row"
            )

    @property
    def cells(self) -> tuple[int, int, int, int]:
        """The four counts in the order of the fields."""
        return self.both_right, self.only_candidate_right, self.only_other_right, self.neither_right

    @property
    def n(self) -> int:
        return sum(self.cells)

    @property
    def gain(self) -> float:
        """The candidate's accuracy minus the other's; a single division keeps comparisons with
        limits exact."""
        return (self.only_candidate_right - self.only_other_right) / self.n

    @property
    def discordance(self) -> float:
        """Share of rows on which exactly one of the two models is right."""
        return (self.only_candidate_right + self.only_other_right) / self.n


@dataclass(frozen=True)
class Comparison:
    """A comparison of the candidate with another model on the same rows in one metric."""

    counts: PairedCounts  # rows by which model is right, for any metric
    candidate_score: float
    other_score: float
    gain: float  # candidate's score minus the other's
    interval: tuple[float, float]
    """Two-sided interval of the gain: Newcombe's for accuracy and exact match, Student's t for
    means over classes, empirical likelihood for other means. If rows share documents, Student's t
    over documents for any metric."""
    p_value: float
    """Two-sided p value for a gain of 0: McNemar's mid-p for accuracy and exact match, sign flips
    for means over rows. Otherwise, from the same t statistic as the interval."""
    num_units: int  # independent units: rows, or documents if rows share documents
    lowest: float
    """Lower end of the gain in tests of non-inferiority: that of `interval`, or of
    `cautious_change` for a mean over documents, because few documents seldom contain a rare one
    with large losses."""


def wilson_interval(num_right: float, *, n: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return Wilson's score interval, two-sided at level 1 - alpha, of the accuracy num_right / n.

    The numbers may be effective numbers of rows, which are no integers.
    """
    if not 0 <= num_right <= n or n == 0:
        raise ValueError(
            f"num_right is {num_right} and n is {n}; give 0 <= num_right <= n and n >= 1"
        )
    low, high = _wilson_limits(np.float64(num_right), n=np.float64(n), alpha=alpha)
    return float(low), float(high)


def _wilson_limits(
    num_right: FloatArray | np.float64, *, n: FloatArray | np.float64, alpha: float
) -> tuple[FloatArray, FloatArray]:
    """Return both ends of Wilson's interval, elementwise.

    These few lines replace a function of statsmodels, which takes two seconds to import. A test
    compares the two.
    """
    z = norm_isf(alpha / 2)
    share = num_right / n
    center = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return (center - half) / scale, (center + half) / scale


def paired_counts(candidate: FloatArray, *, other: FloatArray) -> PairedCounts:
    """Return the counts from the two models' 0/1 scores [N] on the same rows."""
    is_first_right = candidate == 1
    is_second_right = other == 1
    return PairedCounts(
        both_right=int(np.sum(is_first_right & is_second_right)),
        only_candidate_right=int(np.sum(is_first_right & ~is_second_right)),
        only_other_right=int(np.sum(~is_first_right & is_second_right)),
        neither_right=int(np.sum(~is_first_right & ~is_second_right)),
    )


def mcnemar_midp(counts: PairedCounts) -> float:
    """Return McNemar's mid-p value: the exact p value minus the probability of the observed split.

    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013).
    """
    return float(midp_values(counts.only_candidate_right, only_other=counts.only_other_right))


def midp_values(only_candidate: ArrayLike, *, only_other: ArrayLike) -> FloatArray:
    """Return `mcnemar_midp` of arrays of discordant counts, elementwise."""
    only_first = np.asarray(only_candidate, dtype=np.int64)
    only_second = np.asarray(only_other, dtype=np.int64)
    fewer = np.minimum(only_first, only_second)
    discordant = only_first + only_second
    # 2 P(X <= k) - P(X = k) = P(X <= k) + P(X <= k - 1), X binomial with p = 1/2.
    at_most = bdtr(fewer.astype(np.float64), discordant, 0.5)
    less = np.where(
        fewer > 0, bdtr(np.maximum(fewer - 1, 0).astype(np.float64), discordant, 0.5), 0.0
    )
    return np.asarray(
        np.where(discordant == 0, 1.0, np.minimum(at_most + less, 1.0)), dtype=np.float64
    )


def newcombe_paired_interval(counts: PairedCounts, *, alpha: float = 0.05) -> tuple[float, float]:
    """Return the interval of the gain, two-sided at level 1 - alpha, by Newcombe's method 10 for
    paired proportions.

    The Wilson limits of the two accuracies are combined by square-and-add with the correlation phi
    of the two models' correctness; a positive numerator of phi is reduced by n/2. Newcombe,
    Statistics in Medicine 17:2635-2650 (1998).
    """
    low, high = newcombe_limits(np.asarray(counts.cells), alpha=alpha)
    return float(low), float(high)


def newcombe_limits(
    cells: NDArray[np.int64], *, alpha: float = 0.05
) -> tuple[FloatArray, FloatArray]:
    """Return both limits [...] of `newcombe_paired_interval` for tables [..., 4] with cells as in
    `PairedCounts`."""
    both, only_first, only_second, neither = np.moveaxis(cells.astype(np.float64), -1, 0)
    n = both + only_first + only_second + neither
    right = both + only_first
    other_right = both + only_second
    low, high = _wilson_limits(right, n=n, alpha=alpha)
    other_low, other_high = _wilson_limits(other_right, n=n, alpha=alpha)
    numerator = both * neither - only_first * only_second
    numerator = np.where(numerator > 0, np.maximum(numerator - n / 2, 0.0), numerator)
    variance = right * (n - right) * other_right * (n - other_right)
    phi = np.where(variance > 0, numerator / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)
    gain = (only_first - only_second) / n
    below = _square_and_add(right / n - low, other_high - other_right / n, phi)
    above = _square_and_add(high - right / n, other_right / n - other_low, phi)
    return np.maximum(gain - below, -1.0), np.minimum(gain + above, 1.0)


def compare(candidate: Predictions, *, other: Predictions, metric: str, alpha: float) -> Comparison:
    """Compare two models on the same rows in one metric of a recipe.

    Raises VerdictRefused if the rows differ or have no scores in the metric.
    """
    align(candidate, other)
    counts = paired_counts(candidate.scores, other=other.scores)
    score = score_table(metric, candidate)
    other_score = score_table(metric, other)
    spec = METRICS[metric]
    if spec.is_share and candidate.clusters is None:
        interval = newcombe_paired_interval(counts, alpha=alpha)
        return Comparison(
            counts,
            candidate_score=score,
            other_score=other_score,
            gain=counts.gain,
            interval=interval,
            p_value=mcnemar_midp(counts),
            num_units=counts.n,
            lowest=interval[0],
        )
    if spec.is_over_classes:
        effect = class_metric_effect(candidate, other=other, metric=metric, alpha=alpha)
    else:
        scores_of_both = (candidate.per_row(metric), other.per_row(metric))
        effect = mean_change(*scores_of_both, alpha=alpha, clusters=candidate.clusters)
    lowest = effect.interval[0]
    if not spec.is_over_classes and candidate.clusters is not None:
        lowest = _lowest_over_documents(
            effect, scores_of_both, clusters=candidate.clusters, alpha=alpha
        )
    return Comparison(
        counts,
        candidate_score=score,
        other_score=other_score,
        gain=effect.gain,
        interval=effect.interval,
        p_value=effect.p_value,
        num_units=counts.n if candidate.clusters is None else len(set(candidate.clusters)),
        lowest=lowest,
    )


def mean_change(
    first: FloatArray, second: FloatArray, *, alpha: float, clusters: Sequence[str] | None = None
) -> Effect:
    """Return the change of the mean of two models' per-row scores [N].

    `means.mean_effect` if rows are independent, `documents.document_effect` if they share
    documents. The interval of independent rows reaches at least the unseen rate to both sides of
    the change. A single row has the interval (-1, 1) and p = 1.
    """
    if clusters is not None:
        documents = documents_of(clusters, num_rows=len(first))
        return document_effect(first - second, documents=documents, alpha=alpha)
    if len(first) < 2:
        return Effect(
            gain=float(np.mean(first - second)),
            interval=(-1.0, 1.0),
            p_value=1.0,
            standard_error=1.0,
        )
    return with_unseen(
        mean_effect(first, other_scores=second, alpha=alpha), num_units=len(first), alpha=alpha
    )


def _lowest_over_documents(
    effect: Effect, scores: tuple[FloatArray, FloatArray], *, clusters: Sequence[str], alpha: float
) -> float:
    """Return the lowest gain that does not exclude rare documents with large losses, which
    Student's t does."""
    freedom = effect.degrees_of_freedom
    documents = documents_of(clusters, num_rows=len(clusters))
    if freedom is None or documents.num < LEAST_DOCUMENTS:
        return effect.interval[0]
    sums = documents.sums(scores[0] - scores[1])
    low, _ = likelihood_interval(
        sums, sizes=documents.sizes, alpha=alpha, degrees_of_freedom=freedom
    )
    return min(effect.interval[0], low, effect.gain - unseen_rate(freedom + 1, alpha=alpha))


def _square_and_add(first: FloatArray, second: FloatArray, phi: FloatArray) -> FloatArray:
    return np.asarray(
        np.sqrt(np.maximum(first**2 - 2 * phi * first * second + second**2, 0.0)), dtype=np.float64
    )
