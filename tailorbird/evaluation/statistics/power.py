"""Power of one comparison by plain formulas; `verdict.power` resamples the rows and calls the decision."""

import math
from dataclasses import dataclass

from tailorbird.evaluation.statistics.distributions import norm_ppf, norm_sf, t_ppf
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS
from tailorbird.evaluation.statistics.paired import Comparison

TARGET_POWER = 0.8
MAX_ROWS = 10_000_000


@dataclass(frozen=True)
class Precision:
    """The precision of an estimated gain, which is assumed to be normal."""

    num_units: int  # independent units: rows, or documents
    standard_error: float
    degrees_of_freedom: float | None = None  # of Student's t; None for the normal distribution

    def least_units(self, alpha: float) -> int:
        """Return the smallest number of units that can prove a gain; without t, 2^(1 - units) < alpha (sign flips)."""
        return LEAST_DOCUMENTS if self.degrees_of_freedom is not None else math.floor(1 - math.log2(alpha)) + 1

    def half_width(self, alpha: float) -> float:
        """Return half the width of the interval, which is normal or Student's t."""
        if self.degrees_of_freedom is None:
            return float(norm_ppf(1 - alpha / 2) * self.standard_error)
        return float(t_ppf(1 - alpha / 2, self.degrees_of_freedom) * self.standard_error)

    def power(self, gain: float, *, minimum_gain: float, alpha: float) -> float:
        """Return the probability that the estimate reaches `minimum_gain` and the interval is above 0."""
        return float(norm_sf((max(self.half_width(alpha), minimum_gain) - gain) / self.standard_error))


def smallest_detectable(main: Comparison, *, alpha: float) -> float:
    """Return the true gain that the test alone detects with a power of 0.8.

    For a comparison with a standard error, it is the interval's half-width plus z_power standard errors. With too few
    units for a p value below alpha, it is 1.
    """
    if main.standard_error is None:
        # Observing no discordant row does not prove a discordance of 0, so assume at least one.
        discordance = max(main.counts.discordance, 1 / main.counts.n)
        return minimum_detectable_effect(main.counts.n, discordance=discordance, alpha=alpha)
    # Without any observed difference, assume one discordant unit.
    error = main.standard_error or 1 / main.num_units
    precision = Precision(main.num_units, error, main.degrees_of_freedom)
    if main.num_units < precision.least_units(alpha):
        return 1.0
    return float(precision.half_width(alpha) + norm_ppf(TARGET_POWER) * error)


def minimum_detectable_effect(n: int, *, discordance: float, alpha: float) -> float:
    """Return the true gain that McNemar's test detects with a power of 0.8 on n rows (normal approximation)."""
    return float((norm_ppf(1 - alpha / 2) + norm_ppf(TARGET_POWER)) * math.sqrt(discordance / n))


def rows_text(rows: int | None) -> str:
    """Return a number of rows needed: `about 2,903 test rows`; None is more than the search tries."""
    return f"more than {MAX_ROWS:,} test rows" if rows is None else f"about {rows:,} test rows"
