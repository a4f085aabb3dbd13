"""Debiased estimates of a sum of absolute means, such as the expected calibration error.

Chance only ever increases a sum of absolute values, so the measured sum and a bootstrap of it are too large. Estimate
and interval here invert a simulated test instead: they are the true sums for which the measured sum is the median, and
the alpha / 2 and 1 - alpha / 2 quantiles, of the sums that are measured under them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NUM_STEPS = 25  # of the bisection
LARGEST_SHIFT = 60.0  # in standard deviations
NEAR_0 = 1e-9  # a lower limit below this is 0
AT_0 = 0.5


@dataclass(frozen=True)
class DebiasedSum:
    """A sum of absolute means: the median-unbiased estimate and a two-sided interval."""

    estimate: float
    interval: tuple[float, float]
    draws: FloatArray  # [M] measured sums that are simulated under the estimate


def debiased_sum(means: FloatArray, *, noise: FloatArray, unseen: float, alpha: float) -> DebiasedSum:
    """Return the debiased sum of |means| [K] from draws [M, K] of their error, which has a positive spread in each.

    How much chance adds depends on how the true sum is spread over the means: least if it is even, most if it is
    concentrated. The interval covers both. The even truths are multiples of the standard deviations. The concentrated
    truths are the measured means, each moved to 0 by the same number of its standard deviations (soft thresholding;
    Donoho and Johnstone, Biometrika 81:425-455 (1994)). The estimate is halfway between the two. The interval ends at
    `unseen` or above, because no draw of the noise gives a measured sum of 0.
    """
    sizes, spread, measured = np.abs(means), noise.std(axis=0), float(np.abs(means).sum())
    signed = noise * np.where(means < 0, -1.0, 1.0)

    def concentrated(shift: float) -> FloatArray:
        return np.asarray(np.maximum(sizes - shift * spread, 0.0), dtype=np.float64)

    def even(shift: float) -> FloatArray:
        return np.asarray(max(-shift, 0.0) * spread, dtype=np.float64)

    def simulated(truth: FloatArray) -> FloatArray:
        return np.asarray(np.abs(truth + signed).sum(axis=1), dtype=np.float64)

    def truth_at(quantile: float, family: Callable[[float], FloatArray]) -> FloatArray:
        """Return the means under which the measured sum is this quantile; the smallest if no sum is small enough."""
        low, high = -LARGEST_SHIFT, float(np.max(sizes / spread))
        for _ in range(NUM_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if np.quantile(simulated(family(middle)), quantile) < measured else (middle, high)
        return family(high)

    sums = [
        [float(truth_at(quantile, family).sum()) for quantile in (1 - alpha / 2, 0.5, alpha / 2)]
        for family in (concentrated, even)
    ]
    lows, middles, highs = zip(*sums, strict=True)
    draws = simulated(truth_at(0.5, concentrated))
    return DebiasedSum(sum(middles) / 2, (min(lows), max(*highs, unseen)), draws)


def debiased_difference(first: DebiasedSum, second: DebiasedSum) -> tuple[float, tuple[float, float]]:
    """Return the difference of two debiased sums with its interval, by square-and-add with their correlation.

    Both must be computed from the same draws of correlated errors. Zou and Donner, Statistics in Medicine 27:1693-1702
    (2008). A sum cannot be below 0. If the interval of one sum starts at 0, its error has one sign. The errors then
    cancel less than their correlation implies, so it is lowered by `AT_0`, a value found by simulation.
    """
    spreads = first.draws.std() * second.draws.std()
    correlation = float(np.mean((first.draws - first.draws.mean()) * (second.draws - second.draws.mean())) / spreads)
    below, above = (first.estimate - first.interval[0], first.interval[1] - first.estimate)
    other_below, other_above = (second.estimate - second.interval[0], second.interval[1] - second.estimate)
    difference = first.estimate - second.estimate
    low = difference - _half_width(below, other_above, correlation, at_0=first.interval[0] < NEAR_0)
    high = difference + _half_width(above, other_below, correlation, at_0=second.interval[0] < NEAR_0)
    return difference, (low, high)


def _half_width(first: float, second: float, correlation: float, *, at_0: bool) -> float:
    """Return the half-width of a difference from the half-widths of its two parts."""
    correlation -= AT_0 if at_0 else 0.0
    return float(np.sqrt(max(first**2 - 2 * correlation * first * second + second**2, 0.0)))
