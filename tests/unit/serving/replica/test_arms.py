"""The configuration of a replica as JSON, and the assignment of requests to the arms of an
experiment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.replica.config import Challenger
from tests.unit.serving.replica.loads import SECRET

shares = st.floats(0, 1)


def challenger(digest: str = "one", *, canary: float = 0.0, shadow: float = 0.0) -> Challenger:
    return Challenger(uri="s3://c", digest=digest, canary=canary, shadow=shadow)


def draws(challenger: Challenger, *, prefix: str = "", secret: bytes = SECRET) -> NDArray[np.bool_]:
    """Return for each of 4000 units whether it is in the canary arm."""
    units = [f"{prefix}{number}" for number in range(4000)]
    return np.array([challenger.receives("canary", unit, secret=secret) for unit in units])


@given(shares, st.text(max_size=8), st.text(max_size=8))
def test_an_arm_includes_its_share_of_the_units(share: float, digest: str, prefix: str) -> None:
    included = draws(challenger(digest, canary=share), prefix=prefix)
    assert included.mean() == pytest.approx(share, abs=0.05)  # six standard errors


@given(shares, shares, st.text(), st.text())
def test_a_unit_stays_in_an_arm_when_the_share_grows(
    first: float, second: float, digest: str, unit: str
) -> None:
    low, high = [
        challenger(digest, canary=share).receives("canary", unit, secret=SECRET)
        for share in sorted((first, second))
    ]
    assert high or not low


def test_assignments_of_versions_arms_and_secrets_are_independent() -> None:
    """Only who knows the secret can compute an arm."""
    both = challenger(canary=0.5, shadow=0.5)
    first = draws(both)
    units = map(str, range(len(first)))
    shadows = np.array([both.receives("shadow", unit, secret=SECRET) for unit in units])
    other_version = draws(challenger("two", canary=0.5))
    for second in (other_version, shadows, draws(both, secret=b"t" * 32)):
        assert (first & second).mean() == pytest.approx(0.25, abs=0.05)
