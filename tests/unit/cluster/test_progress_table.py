"""The sweep's table follows its events: rungs and trials stand in one order, best first."""

import io

from rich.console import Console

from cluster.progress import Event, display
from cluster.progress_table import begin_board, board, noted

RUNGS = {"majority": 0.12, "probe": 0.66}
EVENTS: list[Event] = [
    {"event": "trial", "trial": "a", "config": {"learning_rate": 0.00021, "method": "lora"}, "status": "training"},
    {"event": "epoch", "trial": "a", "epoch": 0, "score": 0.5, "loss": 1.0, "rows_per_second": 9.0},
    {"event": "trial", "trial": "b", "config": {}, "status": "training"},
    {"event": "epoch", "trial": "a", "epoch": 1, "score": 0.7, "loss": 0.5, "rows_per_second": 9.0},
    {"event": "trial", "trial": "a", "config": {"learning_rate": 0.00021, "method": "lora"}, "status": "completed"},
]


def shown(*, is_terminal: bool, events: list[Event]) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120, color_system=None)
    with display(console) as show:
        for event in events:
            show(event)
    return out.getvalue()


def test_rungs_and_trials_stand_best_first_and_a_trial_without_a_score_last() -> None:
    rows = begin_board(RUNGS)
    for event in EVENTS:
        rows = noted(rows, event)
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(board(rows))
    lines = [line.split() for line in capture.get().splitlines()]
    assert [line[0] for line in lines[1:]] == ["a", "probe", "majority", "b"]
    assert lines[1] == ["a", "0.700", "2", "completed", "learning_rate", "0.00021,", "method", "lora"]


def test_other_events_and_the_epochs_of_a_further_seed_leave_the_table_as_it_is() -> None:
    rows = begin_board(RUNGS)
    assert noted(rows, {"event": "note", "text": "hello"}) == rows
    assert noted(rows, {"event": "epoch", "seed": 1, "epoch": 0, "score": 0.9}) == rows


def test_on_a_terminal_the_table_stays_when_the_next_stage_begins() -> None:
    sweep: Event = {"event": "stage", "text": "sweep: 2 trials", "rungs": RUNGS}
    text = shown(is_terminal=True, events=[sweep, *EVENTS, {"event": "stage", "text": "test"}])
    table = text[text.rindex("validation  epochs") : text.rindex("test\n")].splitlines()
    assert [line.split()[0] for line in table[:5]] == ["validation", "a", "probe", "majority", "b"]


def test_a_log_has_plain_lines_and_no_table() -> None:
    sweep: Event = {"event": "stage", "text": "sweep: 2 trials", "rungs": RUNGS}
    lines = shown(is_terminal=False, events=[sweep, *EVENTS]).splitlines()
    assert lines[0] == "sweep: 2 trials"
    assert lines[1] == "  trial a epoch 1: validation 0.500, loss 1.000, 9 rows/s"
    assert len(lines) == 3
