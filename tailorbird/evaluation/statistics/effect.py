"""A paired gain with its interval and p value, and the rate of events that occur in no row."""

from dataclasses import dataclass

from scipy.stats import t


@dataclass(frozen=True)
class Effect:
    """A paired gain, candidate minus other, with its interval and p value."""

    gain: float
    interval: tuple[float, float]  # two-sided at level 1 - alpha
    p_value: float  # two-sided, for the hypothesis that the gain is 0
    standard_error: float
    degrees_of_freedom: float | None = None
    """Of Student's t, from which interval and p value come; None if they come from a bootstrap over rows."""


def t_effect(gain: float, *, standard_error: float, degrees_of_freedom: float, alpha: float) -> Effect:
    """Return an effect whose interval and p value come from the same t statistic, so that they always agree."""
    half = float(t.ppf(1 - alpha / 2, degrees_of_freedom)) * standard_error
    if standard_error > 0:
        p_value = 2 * float(t.sf(abs(gain) / standard_error, degrees_of_freedom))
    else:
        p_value = 0.0 if gain else 1.0
    interval = (max(gain - half, min(gain, -1.0)), min(gain + half, max(gain, 1.0)))
    return Effect(gain, interval, p_value, standard_error, degrees_of_freedom)


def unseen_rate(n: float, *, alpha: float) -> float:
    """Return the upper confidence limit at level alpha / 2 for the rate of an event that occurs in none of n rows.

    Clopper and Pearson's limit, 1 - (alpha / 2)^(1 / n): about 3.7 / n at alpha 0.05.
    """
    return 1.0 - float((alpha / 2) ** (1 / n))


def at_least_unseen(interval: tuple[float, float], *, estimate: float, n: int, alpha: float) -> tuple[float, float]:
    """Return a bootstrap interval widened to at least the unseen rate on both sides of the estimate.

    Otherwise ten rows without a difference would have an interval of width 0.
    """
    margin = unseen_rate(n, alpha=alpha)
    return min(interval[0], estimate - margin), max(interval[1], estimate + margin)
