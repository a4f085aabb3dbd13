"""Security events of replicas. Integration tests write them to a real S3 server."""

import asyncio

import pytest

from serving.http.api_keys import ApiKey, new_key, parse_options
from serving.http.refusals import Refusal
from serving.security_events import MAX_WAITING, SecurityEvents, WaitingEvent, key_change, refusal_events

UNWRITABLE = "file:///dev/null/registry"  # in a file, there are no folders


def key(name: str, digit: str, *options: str) -> ApiKey:
    return ApiKey(name, digit * 64, parse_options(options))


def test_a_change_of_keys_names_what_was_added_removed_changed_and_replaced_without_hashes() -> None:
    former = [key("old", "1"), key("same", "2"), key("app", "3", "texts=5"), key("rotated", "4")]
    new = [key("new", "5", "scopes=batch"), key("same", "2"), key("app", "3", "texts=9"), key("rotated", "6")]
    event, name = key_change(former, new, task="icd10", changed_at="1")
    assert event.kind == "key"
    assert event.what == "icd10: keys added new; removed old; changed app; replaced rotated"
    standard = "scopes=answer,feedback"
    assert event.before == {"app": [f"{standard} texts=5"], "old": [standard], "rotated": [standard]}
    assert event.after == {"app": [f"{standard} texts=9"], "new": ["scopes=batch"], "rotated": [standard]}
    assert name is not None
    text = event.model_dump_json() + name
    assert not any(one.sha256 in text for one in (*former, *new))


def test_replicas_that_notice_the_same_change_give_it_the_same_name() -> None:
    former, new = [key("a", "1"), key("b", "2")], [key("a", "1")]
    names = {key_change(former, new, task="t", changed_at="1").name}
    names |= {key_change(former[::-1], new, task="t", changed_at="1").name}
    assert len(names) == 1
    others = [
        key_change(new, former, task="t", changed_at="1"),
        key_change(former, new, task="t", changed_at="2"),  # the same change, made again later
        key_change(former, new, task="u", changed_at="1"),
        key_change((), new, task="t", changed_at="1"),
        key_change(None, new, task="t", changed_at="1"),
    ]
    assert len(names | {other.name for other in others}) == 6
    assert others[-2].event.what == "t: keys added a"  # after all keys were removed
    assert others[-1].event.what == "t: keys at the start of a replica: a"


def test_refusals_are_one_event_per_reason_and_client() -> None:
    counts = {Refusal(401, "invalid_api_key", "address 10.0.0.1"): 7, Refusal(403, "missing_scope", "key app"): 1}
    events = list(refusal_events(counts, task="icd10"))
    assert [(event.kind, event.who, event.what) for event in events] == [
        ("refusal", "address 10.0.0.1", "icd10: 7 requests refused with 401 invalid_api_key"),
        ("refusal", "key app", "icd10: 1 requests refused with 403 missing_scope"),
    ]


def test_a_log_that_cannot_be_written_is_reported_once_and_its_events_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> SecurityEvents:
        events = SecurityEvents(UNWRITABLE, task="icd10")
        for number in range(3):
            events.refusals.add(Refusal(401, "invalid_api_key", f"address {number}"))
            await events.flush()
        return events

    events = asyncio.run(scenario())
    assert events.is_failing
    assert [waiting.event.who for waiting in events._waiting] == ["address 0"]
    assert [refusal.client for refusal in events.refusals.take()] == ["address 1", "address 2"]  # still counted
    (record,) = caplog.records
    assert "the security log cannot be written" in record.message


def test_few_events_wait_while_the_log_cannot_be_written() -> None:
    events = SecurityEvents(UNWRITABLE, task="icd10")
    _, line = new_key("app")
    for number in range(2 * MAX_WAITING):
        events.add_key_change((), (line,), str(number))
    assert len(events._waiting) == MAX_WAITING


def test_a_change_of_keys_during_a_write_waits_for_the_next_and_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    events = SecurityEvents(UNWRITABLE, task="icd10")
    _, line = new_key("app")
    written: list[str] = []

    def write(waiting: WaitingEvent, *, registry: str) -> None:  # noqa: ARG001
        if not written:
            for number in range(1, MAX_WAITING + 1):  # the queue is full, and drops the event that is being written
                events.add_key_change((), (line,), str(number))
        written.append(str(waiting.name))

    monkeypatch.setattr(WaitingEvent, "write", write)
    events.add_key_change((), (line,), "0")
    asyncio.run(events.flush())
    assert (len(written), len(set(written)), len(events._waiting)) == (MAX_WAITING + 1, MAX_WAITING + 1, 0)
