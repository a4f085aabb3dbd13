"""The table of a sweep follows its events and lists baselines and trials by score."""

import io
from collections.abc import Sequence

from rich.console import Console

from cluster.progress import EpochEvent, NoteEvent, ProgressEvent, StageEvent, TrialEvent
from cluster.progress_display import baseline_rows, display, progress_table, updated_rows

BASELINES = {"majority": 0.12, "probe": 0.66}
CONFIG = {"learning_rate": 0.00021, "method": "lora"}
EVENTS = (
    TrialEvent("a", CONFIG, "training"),
    EpochEvent(0, 0.5, 1.0, 9.0, trial="a"),
    TrialEvent("b", {}, "training"),
    EpochEvent(1, 0.7, 0.5, 9.0, trial="a"),
    TrialEvent("a", CONFIG, "completed"),
)
SWEEP = StageEvent("sweep: 2 trials", BASELINES)


def printed(*, is_terminal: bool, events: Sequence[ProgressEvent]) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120, color_system=None)
    with display(console) as progress:
        for event in events:
            progress.report(event)
    return out.getvalue()


def test_baselines_and_trials_are_sorted_best_first_and_a_trial_without_a_score_is_last() -> None:
    rows = baseline_rows(BASELINES)
    for event in EVENTS:
        rows = updated_rows(rows, event)
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(progress_table(rows))
    lines = [line.split() for line in capture.get().splitlines()]
    assert [line[0] for line in lines[1:]] == ["a", "probe", "majority", "b"]
    assert lines[1] == ["a", "0.700", "2", "completed", "learning_rate", "0.00021,", "method", "lora"]


def test_other_events_and_epochs_of_seed_runs_do_not_change_the_table() -> None:
    rows = baseline_rows(BASELINES)
    assert updated_rows(rows, NoteEvent("hello")) == rows
    assert updated_rows(rows, EpochEvent(0, 0.9, 1.0, 9.0, seed=1)) == rows


def test_on_a_terminal_the_table_remains_when_the_next_stage_starts() -> None:
    text = printed(is_terminal=True, events=[SWEEP, *EVENTS, StageEvent("test")])
    table = text[text.rindex("validation  epochs") : text.rindex("test\n")].splitlines()
    assert [line.split()[0] for line in table[:5]] == ["validation", "a", "probe", "majority", "b"]


def test_a_log_has_plain_lines_without_a_table() -> None:
    lines = printed(is_terminal=False, events=[SWEEP, *EVENTS]).splitlines()
    assert lines[0] == "sweep: 2 trials"
    assert lines[1] == "  trial a epoch 1: validation 0.500, loss 1.000, 9 rows/s"
    assert len(lines) == 3
