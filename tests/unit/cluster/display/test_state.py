"""The state of a run follows its events, and is described in words."""

import pytest

from cluster.display.state import (
    Row,
    State,
    activity_line,
    duration,
    estimate,
    next_state,
    sorted_rows,
    updated_rows,
)
from cluster.progress import (
    ActivityEvent,
    EpochEvent,
    NoteEvent,
    PlanEvent,
    PlannedStage,
    RowsEvent,
    ScoreEvent,
    StageEvent,
    StepEvent,
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


def test_the_progress_of_rows_belongs_to_one_activity() -> None:
    state = State(stage="test", activity="incumbent on the test rows")
    state = next_state(state, RowsEvent(100, 400, 30.0), now=3.0)
    assert activity_line(state, now=4.0) == (
        "incumbent on the test rows, 100/400 rows, 30 rows/s, about 10 s left (test: 4 s)"
    )
    state = next_state(state, ActivityEvent("candidate on the test rows"), now=5.0)
    assert activity_line(state, now=5.0) == "candidate on the test rows (test: 5 s)"


def test_steps_have_the_rate_the_time_left_and_the_expected_time_of_the_stage() -> None:
    plan = PlanEvent((PlannedStage("sweep", 240.0, ""),), "")
    state = next_state(State(stage="sweep"), plan, now=0.0)
    state = next_state(state, StepEvent(1, 3, 25, 0.5, 0.42, seed=2, seconds_left=7200.0), now=1.0)
    assert activity_line(state, now=65.0) == (
        "seed 2 epoch 2, step 3/25, loss 0.500, 0.42 rows/s, about 2.0 h left (sweep: 1 min 5 s, "
        "expected about 4 min)"
    )


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
