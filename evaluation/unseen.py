"""Beside every resampling: how much the rows could hide, since no resample shows what did not occur on any of them."""


def unseen_rate(n: int, *, alpha: float) -> float:
    """Highest share of rows with an event that, at level alpha / 2, may have occurred on none of n rows.

    Clopper and Pearson's upper limit at no event, 1 - (alpha / 2)^(1 / n): about 3.7 / n at alpha 0.05.
    """
    return 1.0 - float((alpha / 2) ** (1 / n))


def at_least_unseen(interval: tuple[float, float], *, estimate: float, n: int, alpha: float) -> tuple[float, float]:
    """A resampled interval, widened so that it reaches the unseen rate to both sides of its estimate.

    Without it ten rows on which nothing happened would have an interval of no width, and prove anything.
    """
    margin = unseen_rate(n, alpha=alpha)
    return min(interval[0], estimate - margin), max(interval[1], estimate + margin)
