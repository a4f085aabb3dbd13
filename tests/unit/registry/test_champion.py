"""Tests of the champion record."""

from typing import Any

from tailorbird.registry.champion import Champion, ChangeReason, ParityResult

NOW = "2026-03-01T00:00:00+00:00"
PARITY = ParityResult(rows=64, matching=63, ties=2, at=NOW)


def champion(**fields: Any) -> Champion:
    reason = ChangeReason(change="promotion", text="FINE_TUNE")
    defaults = {
        "uri": "s3://m/t/versions/full-1",
        "digest": "1",
        "run": "s3://m/t/runs/r",
        "version": "full-1",
    }
    return Champion.model_validate(defaults | {"reason": reason, "since": NOW} | fields)


def test_parity_is_needed_once_and_not_after_a_rollback() -> None:
    assert champion().needs_parity
    assert not champion(parity=PARITY).needs_parity
    assert not champion(
        reason=ChangeReason(change="rollback", text="rolled back from full-2: slow")
    ).needs_parity
