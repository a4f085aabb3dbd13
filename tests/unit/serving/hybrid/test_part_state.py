"""The state of a hybrid's part: time-outs in a row, and its errors in the log."""

import logging

import pytest

from serving.http.schemas import RequestError
from serving.hybrid.part_state import COOL_DOWN_S, LOG_S, MAX_TIMEOUTS, PartState

LATE = RequestError(504, "endpoint_timeout", "late")


def test_only_time_outs_in_a_row_make_a_part_absent_and_one_more_is_enough_after_the_cool_down() -> (
    None
):
    now = 0.0
    part = PartState("second", version="v", clock=lambda: now)
    for error in [LATE] * (MAX_TIMEOUTS - 1) + [RuntimeError("no memory")] * MAX_TIMEOUTS:
        part.failed(error)
    assert not part.is_away
    part.answered()
    part.failed(LATE)
    assert not part.is_away
    for _ in range(MAX_TIMEOUTS - 1):
        part.failed(TimeoutError())
    assert part.is_away
    now = COOL_DOWN_S
    assert not part.is_away
    part.failed(LATE)
    assert part.is_away
    part.answered()
    assert not part.is_away


def test_an_outage_is_logged_once_a_minute_and_a_long_request_never(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    part = PartState("second", version="v-1", clock=lambda: now)
    with caplog.at_level(logging.ERROR):
        part.failed(RequestError(400, "too_long", "shorten it"))
        assert not caplog.records
        for _ in range(100):
            part.failed(LATE)
        assert caplog.messages == ["the second part of v-1 did not answer"]
        now = LOG_S
        part.failed(LATE)
    assert len(caplog.records) == 2
