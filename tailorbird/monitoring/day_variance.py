"""The variance between days without drift: requests of one day resemble each other more than those
of other days.

It is measured by the intraday correlation: the correlation of two rows of one day. With a
correlation of c, a window of days with n rows each varies 1 + (n - 1) c times as much as a window
of independent rows (the design effect; Kish, Survey Sampling, 1965).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

USUAL_CORRELATION = 0.003
USUAL_FREEDOM = 10.0
"""Assumed before any day is known, with the weight of this number of degrees of freedom: with 700
rows per day, the share of a class that has a tenth of the rows then varies from day to day with a
standard deviation of 1.6 points."""
MAX_CORRELATION = 0.5


@dataclass(frozen=True)
class DayVariance:
    """The intraday correlation that one window measures."""

    correlation: float  # unbiased, so it may be below 0
    freedom: int  # degrees of freedom: the number of days minus 1; 0 for a window of one day


@dataclass(frozen=True)
class DesignEffect:
    """The variance of a window relative to a window of independent rows."""

    effect: float  # 1 or more
    freedom: float  # degrees of freedom of the estimate


ONE_DAY = DayVariance(0.0, 0)


def design_effect(days: IntArray, variances: Sequence[DayVariance]) -> DesignEffect:
    """Return the design effect of a window with these days [N], from the variances of this and of
    earlier windows."""
    sizes = np.unique(days, return_counts=True)[1].astype(np.float64)
    freedom = USUAL_FREEDOM + sum(variance.freedom for variance in variances)
    summed = sum(variance.correlation * variance.freedom for variance in variances)
    correlation = (USUAL_CORRELATION * USUAL_FREEDOM + summed) / freedom
    correlation = min(max(correlation, 0.0), MAX_CORRELATION)
    return DesignEffect(1 + correlation * float((sizes**2).sum() / sizes.sum() - 1), freedom)


def effective_rows(keys: NDArray[np.int64] | NDArray[np.uint64]) -> float:
    """Return Kish's effective number of rows with these keys [N], if all rows of one key are equal;
    0 without rows.

    It is the number of keys if all have equally many rows.
    """
    sizes = np.unique(keys, return_counts=True)[1].astype(np.float64)
    if len(sizes):
        return float(sizes.sum() ** 2 / (sizes**2).sum())
    return 0.0


def variance_of_counts(counts: IntArray) -> DayVariance:
    """Return the intraday correlation of binned rows from the counts [D, B] by day.

    It is the excess of Pearson's statistic of each day, compared with all days, over its mean
    without day effects.
    """
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0].astype(np.float64)
    sizes = counts.sum(1)
    total = counts.sum()
    if len(sizes) < 2 or counts.shape[1] < 2 or sizes.mean() <= 1:
        if len(sizes) < 2:
            return ONE_DAY
        return DayVariance(0.0, len(sizes) - 1)
    expected = np.outer(sizes, counts.sum(0) / total)
    pearson = ((counts - expected) ** 2 / expected).sum(1) / (counts.shape[1] - 1)
    excess = pearson / (1 - sizes / total) - 1  # all days include the day itself
    return DayVariance(float((excess * sizes).sum() / (sizes * (sizes - 1)).sum()), len(sizes) - 1)


def varied_shares(
    generator: np.random.Generator, shares: FloatArray, *, size: int, design: DesignEffect
) -> FloatArray:
    """Return shares [K, B] as they vary between windows of `size` rows, given the shares [K, B]
    without day effects.

    They have the Dirichlet distribution with which multinomial counts have the design effect. The
    effect is estimated, so each draw has an effect of its own, with the spread of a variance with
    these degrees of freedom.
    """
    spread = design.freedom / generator.chisquare(design.freedom, len(shares))
    excess = np.minimum((design.effect - 1) * spread, 0.9 * (size - 1))
    total = (size - 1 - excess) / np.maximum(excess, 1e-6)
    drawn = generator.standard_gamma(shares * total[:, None]) + 1e-300
    return np.asarray(drawn / drawn.sum(1, keepdims=True))
