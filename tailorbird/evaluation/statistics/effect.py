"""A paired gain with its interval and p value, and the rate of events that occur in no row."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Effect:
    """A paired gain, candidate minus other, with its interval and p value."""

    gain: float
    interval: tuple[float, float]  # two-sided at level 1 - alpha
    p_value: float  # two-sided, for the hypothesis that the gain is 0
    standard_error: float
    degrees_of_freedom: float | None = None
    """Of Student's t, from which interval and p value come; None for an effect without t
    statistic."""


def with_least_p(effect: Effect, *, num_differing: int, alpha: float) -> Effect:
    """Return the effect with a p value of at least 2^(1 - d), where d units differ, and an interval
    that agrees.

    No sign-flip test over d units has a smaller p value. If it is not below alpha, the interval
    contains 0.
    """
    least = 2.0 ** (1 - num_differing)
    low, high = effect.interval
    if least < alpha:
        interval = effect.interval
    else:
        interval = (min(low, 0.0), max(high, 0.0))
    return replace(effect, p_value=min(1.0, max(effect.p_value, least)), interval=interval)


def with_unseen(effect: Effect, *, num_units: float, alpha: float) -> Effect:
    """Return the effect with an interval that reaches at least the unseen rate of the units to both
    sides of the gain.

    Units with small differences do not exclude a large loss or gain of other units.
    """
    reach = unseen_rate(num_units, alpha=alpha)
    gain = effect.gain
    (low, high) = effect.interval
    ends = (
        max(min(low, gain - reach), min(gain, -1.0)),
        min(max(high, gain + reach), max(gain, 1.0)),
    )
    return replace(effect, interval=ends)


def unseen_rate(n: float, *, alpha: float) -> float:
    """Return the upper confidence limit at level alpha / 2 for the rate of an event that occurs in
    none of n rows.

    Clopper and Pearson's limit, 1 - (alpha / 2)^(1 / n): about 3.7 / n at alpha 0.05.
    """
    return 1.0 - float((alpha / 2) ** (1 / n))
