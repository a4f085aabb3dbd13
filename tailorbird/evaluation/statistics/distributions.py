"""Student's t and the normal distribution, without `scipy.stats`, which takes a second to import.

The values are those of `scipy.stats.t` and `scipy.stats.norm`, bit for bit.
"""

from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit


def t_cdf(x: Any, freedom: Any) -> Any:
    """Return P(T <= x) for `freedom` degrees of freedom."""
    return stdtr(freedom, x)


def t_sf(x: Any, freedom: Any) -> Any:
    """Return P(T > x) for `freedom` degrees of freedom."""
    return stdtr(freedom, -x)


def t_ppf(p: Any, freedom: Any) -> Any:
    """Return the x with P(T <= x) = p; -inf for p = 0, where `stdtrit` returns inf."""
    return np.where(np.asarray(p) == 0, -np.inf, stdtrit(freedom, p))[()]


def t_isf(p: Any, freedom: Any) -> Any:
    """Return the x with P(T > x) = p."""
    return -t_ppf(p, freedom)


def norm_sf(x: Any) -> Any:
    """Return P(Z > x)."""
    return ndtr(-x)


def norm_ppf(p: Any) -> Any:
    """Return the z with P(Z <= z) = p."""
    return ndtri(p)


def norm_isf(p: Any) -> Any:
    """Return the z with P(Z > z) = p."""
    return -ndtri(p)
