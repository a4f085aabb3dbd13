"""Debiased estimate of a sum of absolute means, such as the expected calibration error.

Chance only ever increases a sum of absolute values, so the measured sum and a bootstrap of it are
too large. Estimate and interval here invert a simulated test instead: they are the true sums for
which the measured sum is the median, and the alpha / 2 and 1 - alpha / 2 quantiles, of the sums
that are measured under them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NUM_STEPS = 25  # of the bisection
LARGEST_SHIFT = 60.0  # in standard deviations


def debiased_sum(
    means: FloatArray, *, noise: FloatArray, unseen: float, alpha: float
) -> tuple[float, tuple[float, float]]:
    """Return the debiased sum of |means| [K] and its two-sided interval, from draws [M, K] of the
    means' error.

    Each error has a positive spread. How much chance adds depends on how the true sum is spread
    over the means: least if it is even, most if it is concentrated. The interval covers both. The
    even truths are multiples of the standard deviations. The concentrated truths are the measured
    means, each moved to 0 by the same number of its standard deviations (soft thresholding; Donoho
    and Johnstone, Biometrika 81:425-455 (1994)). The estimate, which is median-unbiased, is halfway
    between the two. The interval ends at `unseen` or above, because no draw of the noise gives a
    measured sum of 0.
    """
    sizes = np.abs(means)
    spread = noise.std(axis=0)
    measured = float(sizes.sum())
    signed = noise * np.where(means < 0, -1.0, 1.0)

    def concentrated(shift: float) -> FloatArray:
        return np.asarray(np.maximum(sizes - shift * spread, 0.0), dtype=np.float64)

    def even(shift: float) -> FloatArray:
        return np.asarray(max(-shift, 0.0) * spread, dtype=np.float64)

    def true_sum(quantile: float, family: Callable[[float], FloatArray]) -> float:
        """Return the true sum under which the measured sum is this quantile; the least if no sum is
        small enough."""
        low = -LARGEST_SHIFT
        high = float(np.max(sizes / spread))
        for _ in range(NUM_STEPS):
            middle = (low + high) / 2
            simulated = np.abs(family(middle) + signed).sum(axis=1)
            if np.quantile(simulated, quantile) < measured:
                high = middle
            else:
                low = middle
        return float(family(high).sum())

    def true_sums(quantile: float) -> list[float]:
        return [true_sum(quantile, family) for family in (concentrated, even)]

    interval = (min(true_sums(1 - alpha / 2)), max(*true_sums(alpha / 2), unseen))
    return sum(true_sums(0.5)) / 2, interval
