"""Assignment of requests to the arms of an experiment."""

from typing import Literal

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


def draws(
    challenger: Challenger,
    arm: Literal["canary", "shadow"] = "canary",
    *,
    prefix: str = "",
    secret: bytes = SECRET,
) -> NDArray[np.bool_]:
    """Return for each of 4000 units whether it is in the arm."""
    units = [f"{prefix}{number}" for number in range(4000)]
    return np.array([challenger.receives(arm, unit, secret=secret) for unit in units])


@given(shares, st.text(max_size=8), st.text(max_size=8))
def test_an_arm_includes_its_share_of_the_units(share: float, digest: str, prefix: str) -> None:
    included = draws(challenger(digest, canary=share), prefix=prefix)
    assert included.mean() == pytest.approx(share, abs=0.05)  # six standard errors


@given(shares, shares, st.text(), st.text())
def test_a_unit_stays_in_an_arm_when_the_share_grows(
    first: float, second: float, digest: str, unit: str
) -> None:
    low, same, high = (
        challenger(digest, canary=share).receives("canary", unit, secret=SECRET)
        for share in (min(first, second), min(first, second), max(first, second))
    )
    assert low == same
    assert high or not low


def test_a_share_of_0_includes_no_unit_and_a_share_of_1_includes_all() -> None:
    shadowed = challenger(shadow=1.0)
    assert not draws(shadowed).any()
    assert draws(shadowed, "shadow").all()


def test_assignments_of_versions_arms_and_secrets_are_independent() -> None:
    """Only who knows the secret can compute an arm."""
    both = challenger(canary=0.5, shadow=0.5)
    first = draws(both)
    for second in (
        draws(challenger("two", canary=0.5)),
        draws(both, "shadow"),
        draws(both, secret=b"t" * 32),
    ):
        assert (first & second).mean() == pytest.approx(0.25, abs=0.05)
