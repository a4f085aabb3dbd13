"""The state of a run follows its events, and is described in words."""

import pytest

from cluster.display.state import (
    State,
    duration,
    estimate,
    next_state,
)
from cluster.progress import (
    StageEvent,
)


def test_a_stage_with_the_same_name_continues_the_stage() -> None:
    state = State()
    for now, event in enumerate(
        (StageEvent("seed 1: x", "seeds"), StageEvent("seed 2: x", "seeds"))
    ):
        state = next_state(state, event, now=float(now))
    assert (state.stage, state.since, state.finished) == ("seeds", 0.0, ())
    state = next_state(state, StageEvent("test: x", "test"), now=9.0)
    assert state.finished == (("seeds", 9.0),)


@pytest.mark.parametrize(
    ("seconds", "elapsed", "expected"),
    [
        (0.4, "0 s", "about 5 s"),
        (48.0, "48 s", "about 50 s"),
        (200.0, "3 min 20 s", "about 3 min"),
        (3900.0, "1 h 5 min", "about 1.1 h"),
    ],
)
def test_times_are_short(seconds: float, elapsed: str, expected: str) -> None:
    assert (duration(seconds), estimate(seconds)) == (elapsed, expected)
