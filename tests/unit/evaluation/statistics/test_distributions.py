"""The distributions of the statistics have the values of `scipy.stats`."""

import numpy as np
import pytest
from scipy import stats

from tailorbird.evaluation.statistics import distributions

X = np.array([-np.inf, -40, -3, -1e-300, 0, 1e-9, 0.3, 5, 1e6, np.inf, np.nan])
P = np.array([0, 1e-300, 1e-12, 0.025, 0.5, 0.975, 1 - 1e-12, 1])


@pytest.mark.parametrize("freedom", [1, 2, 30, 1e6, np.inf])
def test_t_has_the_values_of_scipy(freedom: float) -> None:
    theirs = stats.t(freedom)
    np.testing.assert_array_equal(distributions.t_sf(X, freedom), theirs.sf(X))
    np.testing.assert_array_equal(distributions.t_isf(P[1:], freedom), theirs.isf(P[1:]))
    assert distributions.t_isf(0.025, freedom) == theirs.isf(0.025)


def test_norm_has_the_values_of_scipy() -> None:
    np.testing.assert_array_equal(distributions.norm_sf(X), stats.norm.sf(X))
    np.testing.assert_array_equal(distributions.norm_isf(P), stats.norm.isf(P))
