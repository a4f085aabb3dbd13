"""Interval and p value of a mean score of independent rows: empirical likelihood, sign flips."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from tailorbird.evaluation.statistics.distributions import t_isf
from tailorbird.evaluation.statistics.effect import Effect

FloatArray = NDArray[np.float64]

NUM_FLIPS = 10_000
SIGN_SEED = 1935  # fixed, so that recomputing a verdict gives the same draws
CHUNK_ELEMENTS = 4_000_000  # about 32 MB at 8 bytes each
# Gains closer to 0 than this are ties: only rounding separates them from 0.
ROUNDING = 1e-12


def mean_effect(candidate_scores: FloatArray, *, other_scores: FloatArray, alpha: float) -> Effect:
    """Return the gain in the mean per-row score [N] of at least two independent rows.

    The interval is that of `likelihood_interval`, the p value that of 10,000 sign flips.
    """
    differences = candidate_scores - other_scores
    return Effect(
        gain=float(np.mean(differences)),
        interval=likelihood_interval(differences, alpha=alpha),
        p_value=_sign_flip(differences),
        standard_error=float(np.std(differences, ddof=1)) / math.sqrt(len(differences)),
    )


def likelihood_interval(
    sums: FloatArray,
    *,
    alpha: float,
    sizes: FloatArray | None = None,
    degrees_of_freedom: float | None = None,
) -> tuple[float, float]:
    """Return the empirical-likelihood interval of the mean difference of at least two independent
    units [N].

    Units are rows, or documents with the sums of their differences and their numbers of rows,
    `sizes`. Differences are in [-1, 1], or up to the largest one if that is larger. The
    distributions compared with the observed one may also have weight at both ends of this range,
    because few units seldom contain its rare large losses or gains. For many units with a common
    spread, the interval is Student's t interval. Owen, Empirical Likelihood (2001), with his
    calibration by F(1, N - 1).
    """
    sizes = np.ones_like(sums) if sizes is None else sizes
    reach = max(1.0, float(np.abs(sums / sizes).max()))
    if degrees_of_freedom is None:
        freedom: float = len(sums) - 1
    else:
        freedom = degrees_of_freedom
    threshold = float(t_isf(alpha / 2, freedom)) ** 2 / 2
    low = _lowest_mean(sums, sizes=sizes, reach=reach, threshold=threshold)
    high = -_lowest_mean(-sums, sizes=sizes, reach=reach, threshold=threshold)
    return low, high


def _lowest_mean(sums: FloatArray, *, sizes: FloatArray, reach: float, threshold: float) -> float:
    """Return the lowest mean with a log-likelihood ratio of at most `threshold`; weight at -reach
    is allowed."""
    mean = float(sums.sum() / sizes.sum())
    least = -reach * (1 - ROUNDING)

    def excess(mean: float) -> float:
        return (
            _log_likelihood_ratio((sums - mean * sizes) / sizes.mean(), furthest=mean + reach)
            - threshold
        )

    if mean <= least or excess(least) <= 0:
        return -reach
    return float(brentq(excess, least, mean))


def _log_likelihood_ratio(distances: FloatArray, *, furthest: float) -> float:
    """Return the log-likelihood ratio of the observed distribution and the best one with a distance
    of 0 on average.

    The observed distances [N] have a mean of 0 or more; the best distribution may have weight at
    -`furthest`. By duality, the ratio is the maximum over tilts t of the sum of log(1 + t
    distance), with no term below 0.
    """
    steepest = (1 - ROUNDING) / max(furthest, -float(distances.min()))

    def slope(tilt: float) -> float:
        return float(np.sum(distances / (1 + tilt * distances)))

    if slope(0.0) <= 0:
        return 0.0
    if slope(steepest) >= 0:
        tilt = steepest
    else:
        tilt = float(brentq(slope, 0.0, steepest))
    return float(np.sum(np.log1p(tilt * distances)))


def _sign_flip(units: FloatArray) -> float:
    """Return the sign-flip p value: the share of random sign vectors with a sum at least as far
    from 0.

    1 is added to count and total. Few random sign vectors give no small p value, so the bound of
    Hoeffding, 2 exp(-sum^2 / (2 sum of squares)), is returned if it is smaller. It holds for any
    differences.
    """
    sizes = np.abs(units[units != 0])  # signs do not affect differences of 0
    total = float(sizes.sum())
    seen = abs(float(units.sum()))
    generator = np.random.default_rng(SIGN_SEED)
    as_far = 0
    num_bytes = -(-len(sizes) // 8)
    chunk = max(1, CHUNK_ELEMENTS // max(len(sizes), 1))
    for start in range(0, NUM_FLIPS, chunk):
        num = min(chunk, NUM_FLIPS - start)
        random = np.frombuffer(generator.bytes(num * num_bytes), dtype=np.uint8).reshape(
            num, num_bytes
        )
        positive = np.unpackbits(random, axis=1, count=len(sizes)).astype(np.float64) @ sizes
        as_far += int(np.sum(np.abs(2 * positive - total) >= seen - ROUNDING * total))
    if len(sizes):
        bound = 2 * math.exp(-(seen**2) / (2 * float(sizes @ sizes)))
    else:
        bound = 1.0
    return min((as_far + 1) / (NUM_FLIPS + 1), bound)
