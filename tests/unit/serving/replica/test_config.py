"""A replica's configuration as JSON, and the assignment of requests to a challenger."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replica.config import Challenger, ReplicaConfig, VersionRef, config_id
from tests.unit.serving.replica.loads import SECRET

CONFIG = ReplicaConfig(
    champion=VersionRef(uri="s3://a", digest="a"),
    challenger=Challenger(uri="s3://b", digest="b", shadow=0.5),
    others={"lora-1": VersionRef(uri="s3://c", digest="c")},
)

shares = st.floats(0, 1)


def challenger(digest: str, *, canary: float = 0.0, shadow: float = 0.0) -> Challenger:
    return Challenger(uri="s3://c", digest=digest, canary=canary, shadow=shadow)


def test_a_configuration_survives_json_and_unknown_keys_are_ignored() -> None:
    user_config = CONFIG.to_user_config()
    assert ReplicaConfig.model_validate(user_config) == CONFIG
    assert ReplicaConfig.model_validate(user_config | {"newer": 1}) == CONFIG
    assert config_id(user_config | {"newer": 1}) != config_id(user_config)


def test_a_version_is_added_and_removed_by_name() -> None:
    version = VersionRef(uri="s3://d", digest="d")
    more = CONFIG.with_other("lora-2", version)
    assert list(more.versions) == ["champion", "lora-1", "lora-2", "challenger"]
    assert more.without_other("lora-2") == CONFIG


@settings(max_examples=50, deadline=None)
@given(shares, st.text(max_size=8), st.text(max_size=8))
def test_an_arm_includes_its_share_of_the_units(share: float, digest: str, prefix: str) -> None:
    included = [
        challenger(digest, canary=share).includes("canary", f"{prefix}{number}", secret=SECRET)
        for number in range(4000)
    ]
    assert sum(included) / len(included) == pytest.approx(share, abs=0.05)  # six standard errors


@given(shares, shares, st.text(), st.text())
def test_a_unit_stays_in_an_arm_when_the_share_grows(first: float, second: float, digest: str, unit: str) -> None:
    low, high = (challenger(digest, canary=share) for share in sorted((first, second)))
    assert low.includes("canary", unit, secret=SECRET) == challenger(digest, canary=low.canary).includes(
        "canary", unit, secret=SECRET
    )
    assert high.includes("canary", unit, secret=SECRET) or not low.includes("canary", unit, secret=SECRET)


def test_a_share_of_0_includes_no_unit_and_a_share_of_1_includes_all() -> None:
    units = [str(number) for number in range(200)]
    assert not any(challenger("d", shadow=1.0).includes("canary", unit, secret=SECRET) for unit in units)
    assert all(challenger("d", shadow=1.0).includes("shadow", unit, secret=SECRET) for unit in units)


def test_assignments_of_different_versions_and_arms_are_independent() -> None:
    units = [str(number) for number in range(4000)]

    def both(arm: list[bool], other_arm: list[bool]) -> float:
        return sum(first and second for first, second in zip(arm, other_arm, strict=True)) / len(units)

    first = [challenger("one", canary=0.5).includes("canary", unit, secret=SECRET) for unit in units]
    second = [challenger("two", canary=0.5).includes("canary", unit, secret=SECRET) for unit in units]
    shadow = [challenger("one", shadow=0.5).includes("shadow", unit, secret=SECRET) for unit in units]
    assert both(first, second) == pytest.approx(0.25, abs=0.05)
    assert both(first, shadow) == pytest.approx(0.25, abs=0.05)


def test_only_who_knows_the_secret_can_compute_an_arm() -> None:
    units = [f"subject {number}" for number in range(4000)]
    ours, theirs = (
        [challenger("one", canary=0.5).includes("canary", unit, secret=secret) for unit in units]
        for secret in (SECRET, b"t" * 32)
    )
    assert sum(first == second for first, second in zip(ours, theirs, strict=True)) == pytest.approx(2000, abs=200)
