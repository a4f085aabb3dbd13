"""Progress on a console: a live line and the table of the sweep on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from cluster.progress import EpochEvent, NoteEvent, ProgressEvent, ProgressReporter, StageEvent, StepEvent, TrialEvent

LOG_INTERVAL_S = 15.0

Rows = Mapping[str, "Row"]  # by trial or kind of baseline


@dataclass(frozen=True)
class Row:
    """A baseline or a trial in the table of the sweep."""

    name: str
    status: str
    score: float | None = None  # on the validation rows, after the latest epoch
    epochs: int = 0
    config: str = ""


@contextmanager
def display(console: Console) -> Iterator[ProgressReporter]:
    """Yield a reporter that prints events on a console.

    On a terminal, a stage with `baselines` shows a table of baselines and trials, which remains when the stage ends.
    """
    if not console.is_terminal:
        yield ProgressReporter(_lines(console))
        return
    with Live(console=console, transient=True) as live:
        yield ProgressReporter(_live(console, live))


def baseline_rows(baselines: Mapping[str, float]) -> Rows:
    return {kind: Row(kind, "pretrained", score) for kind, score in baselines.items()}


def updated_rows(rows: Rows, event: ProgressEvent) -> Rows:
    """Return the rows after an event. Only a TrialEvent or the EpochEvent of a trial changes them."""
    if not isinstance(event, (TrialEvent, EpochEvent)) or event.trial is None:
        return rows
    row = rows.get(event.trial) or Row(event.trial, "training")
    if isinstance(event, EpochEvent):
        row = replace(row, score=event.score, epochs=event.epoch + 1)
    else:
        row = replace(row, status=event.status, config=_config_text(event.config))
    return {**rows, event.trial: row}


def progress_table(rows: Rows) -> Table:
    """Return the table with the best score first and trials without a score last."""
    table = Table("", "validation", "epochs", "status", "configuration", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in sorted(rows.values(), key=lambda row: -1.0 if row.score is None else row.score, reverse=True):
        score = "" if row.score is None else f"{row.score:.3f}"
        table.add_row(escape(row.name), score, str(row.epochs or ""), row.status, escape(row.config))
    return table


def _live(console: Console, live: Live) -> Callable[[ProgressEvent], None]:
    rows: Rows = {}
    spinner = Spinner("dots", "starting")

    def report(event: ProgressEvent) -> None:
        nonlocal rows
        if isinstance(event, StageEvent):
            if rows:
                console.print(progress_table(rows))
            rows = baseline_rows(event.baselines)
        rows = updated_rows(rows, event) if rows else rows
        if isinstance(event, StepEvent):
            spinner.update(text=_step_line(event))
        elif not isinstance(event, TrialEvent):
            console.print(_line(event), highlight=False, soft_wrap=True)
            spinner.update(text="…" if isinstance(event, EpochEvent) else escape(event.text))
        live.update(Group(spinner, progress_table(rows)) if rows else spinner)

    return report


def _lines(console: Console) -> Callable[[ProgressEvent], None]:
    last_step_line = 0.0

    def report(event: ProgressEvent) -> None:
        nonlocal last_step_line
        if isinstance(event, TrialEvent):
            return
        if not isinstance(event, StepEvent):
            console.print(_line(event), highlight=False, soft_wrap=True)
        elif time.monotonic() - last_step_line > LOG_INTERVAL_S:
            last_step_line = time.monotonic()
            console.print("  " + _step_line(event), highlight=False, soft_wrap=True)

    return report


def _line(event: StageEvent | NoteEvent | EpochEvent) -> str:
    match event:
        case StageEvent(text):
            return f"[bold]{escape(text)}[/bold]"
        case NoteEvent(text):
            return f"  {escape(text)}"
    return f"  {_epoch(event)}: validation {event.score:.3f}, {_speed(event)}"


def _step_line(event: StepEvent) -> str:
    return f"{_epoch(event)}, step {event.step}/{event.num_steps}, {_speed(event)}"


def _epoch(event: EpochEvent | StepEvent) -> str:
    source = f"seed {event.seed}" if event.trial is None else f"trial {event.trial[-5:]}"
    return f"{source} epoch {event.epoch + 1}"


def _speed(event: EpochEvent | StepEvent) -> str:
    return f"loss {event.loss:.3f}, {event.rows_per_second:.0f} rows/s"


def _config_text(config: Mapping[str, object]) -> str:
    texts = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in config.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())
