"""The state of a hybrid's part: time-outs in a row, and its errors in the log."""

from serving.http.schemas import RequestError
from serving.hybrid.part_state import COOL_DOWN_S, MAX_TIMEOUTS, PartState

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
