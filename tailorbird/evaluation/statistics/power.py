"""Power of one comparison by plain formulas: smallest detectable gain and rows needed (see `verdict.power`)."""

import math
from dataclasses import dataclass

import numpy as np

from tailorbird.evaluation.statistics.distributions import norm_ppf, norm_sf, t_ppf
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS
from tailorbird.evaluation.statistics.paired import Comparison

TARGET_POWER = 0.8
MAX_ROWS = 10_000_000


@dataclass(frozen=True)
class RowsNeeded:
    """The number of rows for a power of 0.8; None if no number is enough, with the reason."""

    rows: int | None
    reason: str


@dataclass(frozen=True)
class Precision:
    """The precision of an estimated gain, which is assumed to be normal."""

    num_rows: int
    num_units: int  # independent units: rows, or documents
    standard_error: float
    degrees_of_freedom: float | None = None  # of Student's t; None if rows are independent

    def least_units(self, alpha: float) -> int:
        """Return the smallest number of units that can prove a gain; for rows, 2^(1 - units) < alpha (sign flips)."""
        return LEAST_DOCUMENTS if self.degrees_of_freedom is not None else math.floor(1 - math.log2(alpha)) + 1

    def half_width(self, alpha: float) -> float:
        """Return half the width of the interval: normal for rows, Student's t for documents."""
        if self.degrees_of_freedom is None:
            return float(norm_ppf(1 - alpha / 2) * self.standard_error)
        return float(t_ppf(1 - alpha / 2, self.degrees_of_freedom) * self.standard_error)

    def power(self, gain: float, *, minimum_gain: float, alpha: float) -> float:
        """Return the probability that the estimate reaches `minimum_gain` and the interval is above 0."""
        return float(norm_sf((max(self.half_width(alpha), minimum_gain) - gain) / self.standard_error))

    def with_units(self, num_units: int) -> "Precision":
        """Return the precision of another number of units of the same size."""
        factor = num_units / self.num_units
        return Precision(
            math.ceil(self.num_rows * num_units / self.num_units),
            num_units,
            self.standard_error / math.sqrt(factor),
            None if self.degrees_of_freedom is None else self.degrees_of_freedom * factor,
        )


def smallest_detectable(main: Comparison, *, alpha: float) -> float:
    """Return the true gain that the test alone detects with a power of 0.8.

    For a comparison with a standard error, it is the interval's half-width plus z_power standard errors. With too few
    units for a p value below alpha, it is 1.
    """
    if main.standard_error is None:
        # Observing no discordant row does not prove a discordance of 0, so assume at least one.
        discordance = max(main.counts.discordance, 1 / main.counts.n)
        return minimum_detectable_effect(main.counts.n, discordance=discordance, alpha=alpha)
    precision = _precision(main)
    if main.num_units < precision.least_units(alpha):
        return 1.0
    return float(precision.half_width(alpha) + norm_ppf(TARGET_POWER) * precision.standard_error)


def _precision(main: Comparison) -> Precision:
    assert main.standard_error is not None  # of a comparison that is not a share of independent rows
    return observed_precision(
        main.counts.n,
        num_units=main.num_units,
        standard_error=main.standard_error,
        degrees_of_freedom=main.degrees_of_freedom,
    )


def minimum_detectable_effect(n: int, *, discordance: float, alpha: float) -> float:
    """Return the true gain that McNemar's test detects with a power of 0.8 on n rows (normal approximation)."""
    return float(_z_sum(alpha) * np.sqrt(discordance / n))


def plain_rows_needed(gain: float, *, discordance: float, alpha: float) -> int:
    """Return the rows with which McNemar's test detects a gain: (z_{1 - alpha/2} + z_power)^2 discordance / gain^2."""
    if gain == 0:
        raise ValueError("gain is 0, which no number of rows can detect; give a gain other than 0")
    return round(_z_sum(alpha) ** 2 * discordance / gain**2)


def observed_precision(
    num_rows: int, *, num_units: int, standard_error: float, degrees_of_freedom: float | None
) -> Precision:
    """Return the precision of an effect; without any observed difference, that of one discordant unit."""
    if standard_error > 0:
        return Precision(num_rows, num_units, standard_error, degrees_of_freedom)
    return Precision(num_rows, num_units, 1 / num_units)


def rows_by_normal(precision: Precision, *, gains: tuple[float, float], alpha: float) -> RowsNeeded:
    """Return the rows needed to prove the expected gain; `gains` are the expected and the minimum gain.

    Further rows are assumed to have the same number of rows per unit.
    """
    gain, minimum_gain = gains
    if gain <= minimum_gain:
        return no_rows(gain, minimum_gain)
    # The rule has two parts: significantly above 0, and an estimate of at least the minimum gain.
    allowed = min(gain / _z_sum(alpha), (gain - minimum_gain) / norm_ppf(TARGET_POWER))
    error = precision.standard_error
    units = max(precision.least_units(alpha), math.ceil(precision.num_units * (error / allowed) ** 2))
    # The quantile of t needs further units.
    while precision.with_units(units).power(gain, minimum_gain=minimum_gain, alpha=alpha) < TARGET_POWER:
        units += math.ceil(units / 100)
    return _rows(precision.with_units(units).num_rows, gain)


def _rows(rows: int, gain: float) -> RowsNeeded:
    if rows > MAX_ROWS:
        return RowsNeeded(None, f"more than {MAX_ROWS:,}")
    return RowsNeeded(rows, f"{rows:,} rows give 80% power at a true gain of {100 * gain:.4g} points")


def rows_text(rows: int | None) -> str:
    """Return a number of rows needed: `about 2,903 test rows`; None is more than the search tries."""
    return f"more than {MAX_ROWS:,} test rows" if rows is None else f"about {rows:,} test rows"


def no_rows(gain: float, minimum_gain: float) -> RowsNeeded:
    """Return that no number of rows is enough, because the gain is not above the minimum gain."""
    gains = f"the expected gain of {100 * gain:.4g} points is not above the minimum gain of {100 * minimum_gain:.4g}"
    return RowsNeeded(None, f"no number of rows gives 80% power, because {gains}")


def _z_sum(alpha: float) -> float:
    return float(norm_ppf(1 - alpha / 2) + norm_ppf(TARGET_POWER))
