"""A confidence sequence of a mean: an interval that holds at all sizes of a growing sample at the
same time.

To test that a mean is at most m, a bettor stakes a share r of the wealth on each value x in [-1,
1]. The stake is multiplied by (1 + x) / (1 + m), which is 1 or less on average if the mean is at
most m. The average wealth over many r is then a nonnegative supermartingale, so it ever reaches 1 /
alpha with a probability of at most alpha (Ville's inequality). The values need no common
distribution, and their order does not matter. Source: Waudby-Smith and Ramdas, Journal of the Royal
Statistical Society B 86, 2024.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

FloatArray = NDArray[np.float64]

NUM_SHARES = 64
SHAPE = 20
"""Weight of the share r: (1 - r^2)^(SHAPE - 1). For values in {-1, 0, 1} and m = 0, this is a
Beta(SHAPE, SHAPE) mixture of the probability of a win. Of 3, 5, 10, 20 and 40, 20 and 40 prove a
gain of 3 points most often with 3,600 rows and a discordance of 0.08 to 0.2, and 20 needs about the
fewest wins and losses at win rates of 0.55 to 0.62."""
NUM_BISECTIONS = 40


def confidence_sequence(differences: FloatArray, *, alpha: float) -> tuple[float, float]:
    """Return an interval of the mean of differences [N] in [-1, 1], as of the N-th value.

    At all N at once, the interval contains the mean with a probability of at least 1 - alpha. If
    the expected differences change, the lower end is below the largest of them, and the upper end
    above the smallest. Raises ValueError for values outside [-1, 1].
    """
    if np.any(np.abs(differences) > 1):
        raise ValueError(
            f"differences range from {differences.min()} to {differences.max()}; they must be in "
            "[-1, 1]"
        )
    values, counts = np.unique(differences, return_counts=True)
    if not len(values):
        return -1.0, 1.0
    high = _lower_end(-values[::-1], counts[::-1], level=alpha / 2)
    return _lower_end(values, counts, level=alpha / 2), -high


def log_wealth(values: FloatArray, *, counts: NDArray[np.integer], mean: float) -> FloatArray:
    """Return the log of the wealth [...] of bets against a mean of at most `mean`.

    `counts` [..., V] are the numbers of the values [V] in one or more samples.
    """
    shares, log_weights = _shares()
    logs = np.log1p(shares[:, None] * ((1 + values) / (1 + mean) - 1))
    return np.asarray(logsumexp(counts @ logs.T + log_weights, axis=-1), dtype=np.float64)


def _lower_end(values: FloatArray, counts: NDArray[np.int64], *, level: float) -> float:
    """Return the largest mean that the bets reject at this level; -1 if there is none."""
    # at the sample's mean, no bet gains
    low = -1.0
    high = float(values @ counts / counts.sum())
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        if middle <= -1 or log_wealth(values, counts=counts, mean=middle) < -np.log(level):
            high = middle
        else:
            low = middle
    return low


@cache
def _shares() -> tuple[FloatArray, FloatArray]:
    """Return the shares in (0, 1) and the logarithms of their weights, which sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(NUM_SHARES)
    shares = (nodes + 1) / 2
    weights = weights * (1 - shares**2) ** (SHAPE - 1)
    return shares, np.log(weights / weights.sum())
