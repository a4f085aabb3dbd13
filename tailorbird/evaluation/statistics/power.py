"""Power of one comparison by plain formulas; `verdict.power` resamples the rows and calls the
decision."""

import math

from tailorbird.evaluation.statistics.distributions import norm_isf

TARGET_POWER = 0.8
MAX_ROWS = 10_000_000


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
