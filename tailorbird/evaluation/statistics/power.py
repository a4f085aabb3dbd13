"""Power of one comparison by plain formulas; `verdict.power` resamples the rows and calls the
decision."""

import math

from tailorbird.evaluation.statistics.distributions import norm_isf, t_isf
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS
from tailorbird.evaluation.statistics.paired import Comparison

TARGET_POWER = 0.8
MAX_ROWS = 10_000_000


def smallest_detectable(main: Comparison, *, alpha: float) -> float:
    """Return the true gain that the test alone detects with a power of 0.8: half its interval plus
    z_power errors.

    The interval is Student's t, or normal for means of independent rows. With fewer than six units,
    the gain is 1.
    """
    if main.num_units < LEAST_DOCUMENTS:
        return 1.0
    error = main.standard_error
    if error is None:
        error = math.sqrt(main.counts.discordance / main.counts.n)
    # Observing no difference does not prove that there is none, so assume one discordant unit.
    error = error or 1 / main.num_units
    z = t_isf(alpha / 2, main.degrees_of_freedom or math.inf) + norm_isf(1 - TARGET_POWER)
    return float(z * error)


def minimum_detectable_effect(n: int, *, discordance: float, alpha: float) -> float:
    """Return the true gain that McNemar's test detects with a power of 0.8 on n rows (normal
    approximation)."""
    return float((norm_isf(alpha / 2) + norm_isf(1 - TARGET_POWER)) * math.sqrt(discordance / n))


def rows_text(rows: int | None) -> str:
    """Return a number of rows needed: `about 2,903 test rows`; None is more than the search
    tries."""
    if rows is None:
        return f"more than {MAX_ROWS:,} test rows"
    return f"about {rows:,} test rows"
