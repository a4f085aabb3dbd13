"""The state of a run follows its events, and is described in words."""

import pytest

from cluster.display.state import (
    Row,
    State,
    duration,
    estimate,
    next_state,
    sorted_rows,
    updated_rows,
)
from cluster.progress import (
    EpochEvent,
    NoteEvent,
    ScoreEvent,
    StageEvent,
    TrialEvent,
)


def test_contenders_are_sorted_best_first_and_one_without_a_score_is_last() -> None:
    rows: dict[str, Row] = {}
    for event in (
        TrialEvent("b", {}, "training"),
        ScoreEvent("majority", 0.1, "always a"),
        EpochEvent(0, 0.5, 1.0, 9.0, trial="a"),
        EpochEvent(1, 0.7, 0.5, 9.0, trial="a"),
        TrialEvent("a", {"learning_rate": 0.00021}, "completed"),
        EpochEvent(0, 0.6, 1.0, 9.0, seed=1),
        NoteEvent("a note changes nothing"),
    ):
        rows = dict(updated_rows(rows, event))
    assert sorted_rows(rows) == [
        Row("trial a", "completed", 0.7, epochs=2, text="learning_rate 0.00021"),
        Row("seed 1", "", 0.6, epochs=1),
        Row("majority", "", 0.1, text="always a"),
        Row("trial b", "training"),
    ]


def test_a_stage_with_the_same_name_continues_the_stage() -> None:
    state = State()
    for now, event in enumerate(
        (StageEvent("seed 1: x", "seeds"), StageEvent("seed 2: x", "seeds"))
    ):
        state = next_state(state, event, now=float(now))
    assert (state.stage, state.since, state.finished) == ("seeds", 0.0, ())
    state = next_state(state, StageEvent("test: x", "test"), now=9.0)
    assert state.finished == (("seeds", 9.0),)


def test_trainings_of_the_learning_curve_are_no_contenders() -> None:
    event = EpochEvent(0, 0.6, 1.0, 9.0, seed=0)
    assert next_state(State(stage="seeds"), event, now=1.0).rows.keys() == {"seed 0"}
    assert next_state(State(stage="learning curve"), event, now=1.0).rows == {}


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
