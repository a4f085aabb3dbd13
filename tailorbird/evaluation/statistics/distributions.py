"""Student's t and the normal distribution, without `scipy.stats`, which takes a second to import.

The values are those of `scipy.stats.t` and `scipy.stats.norm`, bit for bit.
"""

from typing import Any

from scipy.special import ndtr, ndtri, stdtr, stdtrit


def t_sf(x: Any, freedom: Any) -> Any:
    """Return P(T > x) for `freedom` degrees of freedom."""
    return stdtr(freedom, -x)


def t_isf(p: Any, freedom: Any) -> Any:
    """Return the x with P(T > x) = p, for p above 0."""
    return -stdtrit(freedom, p)


def norm_sf(x: Any) -> Any:
    """Return P(Z > x)."""
    return ndtr(-x)


def norm_isf(p: Any) -> Any:
    """Return the z with P(Z > z) = p."""
    return -ndtri(p)
