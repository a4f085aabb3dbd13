"""The security log on a real S3 server."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Literal

import pytest
from typer.testing import CliRunner

from serving.http.api_keys import ApiKey
from serving.http.key_changes import record_key_change
from tailorbird import storage
from tailorbird.cli.app import app
from tailorbird.registry.security_log import SecurityEvent, append, read, recorded
from tailorbird.storage import s3

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = date(2026, 3, 1)


def event(
    what: str, *, at: datetime = NOON, kind: Literal["champion", "configuration"] = "configuration"
) -> SecurityEvent:
    return SecurityEvent(at=at, who="ann@host", kind=kind, what=what)


def test_events_are_read_by_day_in_the_order_of_their_times(bucket: str) -> None:
    events = [
        event("next day", at=NOON + timedelta(days=1)),
        event("late", at=NOON + timedelta(hours=11)),
        event("early", at=NOON.astimezone()),
        event("previous day", at=NOON - timedelta(days=1)),
    ]
    for each in events:
        append(each, registry=bucket)
    assert [each.what for each in read(bucket, since=DAY, until=DAY).events] == ["early", "late"]
    two_days = read(bucket, since=DAY, until=DAY + timedelta(days=1))
    assert two_days.events == (events[2], events[1], events[0])
    assert two_days.unreadable == ()
    assert read(bucket, since=date(2025, 1, 1), until=date(2025, 1, 3)).events == ()


def test_an_existing_event_is_never_replaced(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class SameName:
        hex = "0" * 32

    monkeypatch.setattr("uuid.uuid4", SameName)
    uri = append(event("first"), registry=bucket)
    assert append(event("first"), registry=bucket) == uri  # a repeated write of the same event
    with pytest.raises(s3.PreconditionFailed):
        append(event("second"), registry=bucket)
    assert [each.what for each in read(bucket, since=DAY, until=DAY).events] == ["first"]


def test_replicas_write_one_event_for_a_change_of_keys_that_all_notice(bucket: str) -> None:
    for _ in range(2):
        record_key_change(None, (ApiKey("app", "0" * 64),), "1", registry=bucket, task="icd10")
    today = datetime.now(UTC).date()
    log = read(bucket, since=today - timedelta(days=1), until=today)
    assert [each.what for each in log.events] == ["icd10: keys at the start of a replica: app"]


def test_a_change_is_recorded_before_it_happens_and_again_if_it_fails(bucket: str) -> None:
    with recorded(event("a change"), registry=bucket):
        assert [each.what for each in read(bucket, since=DAY, until=DAY).events] == ["a change"]
    with pytest.raises(ValueError, match="no"), recorded(event("another"), registry=bucket):
        raise ValueError("no")
    today = datetime.now(UTC).date()
    failures = read(bucket, since=today, until=today).events
    assert [(each.who, each.what) for each in failures] == [("ann@host", "failed: another: no")]


def test_nothing_changes_if_its_event_cannot_be_written(bucket: str) -> None:
    changed = False
    with (
        pytest.raises(s3.StorageError, match="does not exist"),
        recorded(event("x"), registry="s3://no-such-bucket"),
    ):
        changed = True
    assert not changed
    assert bucket


def test_the_command_lists_events_and_exits_with_1_for_a_damaged_file(bucket: str) -> None:
    uri = append(event("first"), registry=bucket)
    command = ["security-log", bucket, "--since", "2026-03-01", "--until", "2026-03-01"]
    listed = CliRunner().invoke(app, command)
    assert (listed.exit_code, listed.stdout) == (
        0,
        "2026-03-01T12:00:00+00:00  configuration  ann@host  first\n",
    )
    storage.write_bytes(f"{uri}-other", b"{}")
    damaged = CliRunner().invoke(app, [*command, "--json"])
    assert damaged.exit_code == 1
    assert json.loads(damaged.stdout)["damaged"] == [f"{uri}-other"]
    assert json.loads(damaged.stdout)["events"][0]["who"] == "ann@host"
