"""Events of a run become a live view on a terminal, lines in a log, and JSON objects for
programs."""

import io
import itertools
import json
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from cluster.display.console import Display, display
from cluster.progress import (
    ActivityEvent,
    EpochEvent,
    NoteEvent,
    PlanEvent,
    PlannedStage,
    ProgressEvent,
    RowsEvent,
    ScoreEvent,
    StageEvent,
    StepEvent,
    TrialEvent,
)

CONFIG = {"learning_rate": 0.00021, "method": "lora"}
PLAN = PlanEvent(
    (PlannedStage("baselines", 20.0, "500 rows at 25 rows/s"),), "rates of 16 rows on this cluster"
)
STEP = StepEvent(0, 3, 25, 1.0, 7.2, trial="abc337d2", seconds_left=50.0)
RUN = (
    StageEvent("data: reading the rows", "data"),
    NoteEvent("400 train rows"),
    PLAN,
    StageEvent("baselines: no fine-tuning", "baselines"),
    ActivityEvent("embedding the rows"),
    ScoreEvent("probe", 0.66, "C = 1"),
    ScoreEvent("probe", 0.66, "C = 1"),
    StageEvent("sweep: 1 trial", "sweep"),
    TrialEvent("abc337d2", CONFIG, "training"),
    STEP,
    EpochEvent(0, 0.7, 1.0, 9.0, trial="abc337d2"),
    TrialEvent("abc337d2", CONFIG, "completed"),
)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console(*, is_terminal: bool = False, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=is_terminal, width=width, _environ={"TERM": "xterm"}
    )


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def printed(out: Console, events: Sequence[ProgressEvent], *, as_json: bool = False) -> str:
    """Return the output of events that are 10 s apart."""
    times = itertools.count(step=10.0)
    with display(out, as_json=as_json, clock=lambda: next(times)) as progress:
        for event in events:
            progress.report(event)
    return text_of(out)


def test_a_log_has_a_plain_line_for_each_event_and_the_time_of_each_stage() -> None:
    assert printed(console(width=40), RUN).splitlines() == [
        "data: reading the rows",
        "  400 train rows",
        "  expected: about 20 s (rates of 16 rows on this cluster)",
        "  baselines  about 20 s  500 rows at 25 rows/s",
        "  data took 30 s",
        "baselines: no fine-tuning",
        "  probe        0.660  C = 1",
        "  baselines took 40 s",
        "sweep: 1 trial",
        "  trial 337d2 epoch 1, step 3/25, loss 1.000, 7 rows/s, about 50 s left",
        "  trial 337d2 epoch 1: validation 0.700, loss 1.000, 9 rows/s",
    ]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_texts_of_events_contain_no_control_characters(is_terminal: bool) -> None:
    text = "label \x1b]0;title\x07\x9b2J"
    shown = printed(
        console(is_terminal=is_terminal),
        [StageEvent(text, "data"), NoteEvent(text), ActivityEvent(text)],
    )
    assert shown.count("label \ufffd]0;title\ufffd\ufffd2J") >= 2
    assert re.search("[\x07\x9b]|\x1b\\]", shown) is None


def test_steps_are_in_a_log_at_most_every_15_seconds() -> None:
    clock, out = Clock(), console()
    log = Display(out, clock=clock)
    for now in range(0, 40, 2):
        clock.now = float(now)
        log.report(STEP)
    assert len(text_of(out).splitlines()) == 2  # after 16 s and after 32 s


def test_another_activity_is_stated_after_5_seconds_again() -> None:
    clock, out = Clock(), console()
    log = Display(out, clock=clock)
    for now in (5.0, 15.0):
        clock.now = now
        log.tick()
    log.report(ActivityEvent("candidate on the test rows"))
    log.report(RowsEvent(120, 500, 12.0))
    clock.now = 19.0
    log.tick()
    assert len(text_of(out).splitlines()) == 2
    clock.now = 20.0
    log.tick()
    log.report(ActivityEvent("measuring the cost"))
    clock.now = 25.0
    log.tick()
    assert text_of(out).splitlines()[2:] == [
        "  … candidate on the test rows, 120/500 rows, 12 rows/s, about 30 s left (start: 20 s)",
        "  … measuring the cost (start: 25 s)",
    ]


def test_json_has_one_object_a_line_for_each_event_but_a_repeated_score() -> None:
    objects = [json.loads(line) for line in printed(console(), RUN, as_json=True).splitlines()]
    expected = "stage note plan stage activity score stage trial step epoch trial"
    assert [value["event"] for value in objects] == expected.split()
    assert (objects[0]["elapsed_s"], objects[7]["config"]) == (10.0, CONFIG)


def test_the_contenders_remain_on_a_terminal_at_the_end() -> None:
    end = printed(console(is_terminal=True), RUN).rpartition("settings")[2]
    assert 0 < end.index("trial 337d2  0.700") < end.index("probe        0.660")
