"""Assignment of requests to the arms of an experiment."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.replica.config import Challenger
from tests.unit.serving.replica.loads import SECRET

shares = st.floats(0, 1)


def challenger(digest: str, *, canary: float = 0.0, shadow: float = 0.0) -> Challenger:
    return Challenger(uri="s3://c", digest=digest, canary=canary, shadow=shadow)


def is_in_arm(
    arm: Literal["canary", "shadow"], unit: str, *, challenger: Challenger, secret: bytes
) -> bool:
    return challenger.receives(arm, unit, secret=secret)


@given(shares, st.text(max_size=8), st.text(max_size=8))
def test_an_arm_includes_its_share_of_the_units(share: float, digest: str, prefix: str) -> None:
    included = [
        is_in_arm(
            "canary",
            f"{prefix}{number}",
            challenger=challenger(digest, canary=share),
            secret=SECRET,
        )
        for number in range(4000)
    ]
    assert sum(included) / len(included) == pytest.approx(share, abs=0.05)  # six standard errors


@given(shares, shares, st.text(), st.text())
def test_a_unit_stays_in_an_arm_when_the_share_grows(
    first: float, second: float, digest: str, unit: str
) -> None:
    low, high = (challenger(digest, canary=share) for share in sorted((first, second)))
    in_low, in_high = (
        is_in_arm("canary", unit, challenger=each, secret=SECRET) for each in (low, high)
    )
    assert in_low == is_in_arm(
        "canary", unit, challenger=challenger(digest, canary=low.canary), secret=SECRET
    )
    assert in_high or not in_low


def test_a_share_of_0_includes_no_unit_and_a_share_of_1_includes_all() -> None:
    units = [str(number) for number in range(200)]
    assert not any(
        is_in_arm("canary", unit, challenger=challenger("d", shadow=1.0), secret=SECRET)
        for unit in units
    )
    assert all(
        is_in_arm("shadow", unit, challenger=challenger("d", shadow=1.0), secret=SECRET)
        for unit in units
    )


def test_assignments_of_different_versions_and_arms_are_independent() -> None:
    units = [str(number) for number in range(4000)]

    def both(arm: list[bool], other_arm: list[bool]) -> float:
        return sum(first and second for first, second in zip(arm, other_arm, strict=True)) / len(
            units
        )

    first = [
        is_in_arm("canary", unit, challenger=challenger("one", canary=0.5), secret=SECRET)
        for unit in units
    ]
    second = [
        is_in_arm("canary", unit, challenger=challenger("two", canary=0.5), secret=SECRET)
        for unit in units
    ]
    shadow = [
        is_in_arm("shadow", unit, challenger=challenger("one", shadow=0.5), secret=SECRET)
        for unit in units
    ]
    assert both(first, second) == pytest.approx(0.25, abs=0.05)
    assert both(first, shadow) == pytest.approx(0.25, abs=0.05)


def test_only_who_knows_the_secret_can_compute_an_arm() -> None:
    units = [f"subject {number}" for number in range(4000)]
    ours, theirs = (
        [
            is_in_arm("canary", unit, challenger=challenger("one", canary=0.5), secret=secret)
            for unit in units
        ]
        for secret in (SECRET, b"t" * 32)
    )
    assert sum(
        first == second for first, second in zip(ours, theirs, strict=True)
    ) == pytest.approx(2000, abs=200)
