"""Progress on a console: a live view on a terminal, plain lines in a log, JSON lines for
programs."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cluster.display.control_characters import printable
from cluster.display.state import (
    State,
    activity_line,
    done_text,
    duration,
    epoch_name,
    next_state,
    plan_lines,
    sorted_rows,
    speed,
    stage_lines,
)
from cluster.progress import (
    EpochEvent,
    LineEvent,
    NoteEvent,
    PlanEvent,
    ProgressEvent,
    ProgressReporter,
    RowsEvent,
    ScoreEvent,
    StageEvent,
    StepEvent,
    reporting_to,
)

SILENCE_S = 5.0
"""Seconds without output after which a log gets a line about the current activity."""
LOG_INTERVAL_S = 15.0
"""Minimum seconds between two lines about training steps in a log, and in a log for people also the
maximum seconds without output: the first line about an activity comes after `SILENCE_S`, the second
10 s later, and the others at this interval, so that a stage of an hour adds about 240 lines."""
MIN_SHOWN_S = 1.0  # shorter stages end without a line in a log
TICK_S = 1.0

Clock = Callable[[], float]


@contextmanager
def display(
    console: Console,
    *,
    as_json: bool = False,
    lines: Console | None = None,
    clock: Clock = time.monotonic,
) -> Iterator[ProgressReporter]:
    """Yield a reporter that prints events on a console, also as `current_progress` of this process.

    On a terminal, a live view shows the stages with elapsed and expected times, all contenders and
    the current activity. The contenders are printed once more at the end. With `as_json`, each
    event is a JSON object on a line. Without a terminal, no output is wrapped or colored. The texts
    of `LineEvent` are printed on `lines` instead, except with `as_json`, or if both are terminals,
    because the live view must not be interrupted.
    """
    if lines is None or (lines.is_terminal and console.is_terminal):
        lines = console
    if as_json or not console.is_terminal:
        log = LogDisplay(console, as_json=as_json, lines=lines, clock=clock)
        with _ticking(log), reporting_to(ProgressReporter(log.report)) as progress:
            yield progress
        return
    terminal = TerminalDisplay(console, lines=lines, clock=clock)
    with Live(console=console, transient=True, get_renderable=terminal.view):
        try:
            with reporting_to(ProgressReporter(terminal.report)) as progress:
                yield progress
        finally:
            terminal.close()


class LogDisplay:
    """Writer of one line per event, and of a line about the current activity after a silence."""

    def __init__(
        self,
        console: Console,
        *,
        as_json: bool = False,
        lines: Console | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._console = console
        self._lines = lines or console
        self._as_json = as_json
        self._clock = clock
        self._lock = threading.Lock()
        self._started = self._printed = self._steps_printed = clock()
        self._state = State(since=self._started)
        self._allowed_s = SILENCE_S

    def report(self, event: ProgressEvent) -> None:
        """Print the event, unless it only changes the current activity."""
        with self._lock:
            now = self._clock()
            before = self._state
            self._state = next_state(self._state, event, now=now)
            if self._state.activity != before.activity or self._state.stage != before.stage:
                self._allowed_s = SILENCE_S
            if _is_repeated(event, before):
                return
            if isinstance(event, StepEvent | RowsEvent):
                if now - self._steps_printed < LOG_INTERVAL_S:
                    return
                self._steps_printed = now
            if self._as_json:
                self._print_json(_event_name(event), asdict(event), now=now)
                return
            if (
                self._state.stage != before.stage
                and before.stage
                and now - before.since >= MIN_SHOWN_S
            ):
                self._print(f"  {before.stage} took {duration(now - before.since)}", now=now)
            for line in log_lines(event):
                self._print(
                    line, now=now, console=self._lines if isinstance(event, LineEvent) else None
                )

    def tick(self) -> None:
        """Print the current activity if nothing was printed for the allowed time."""
        with self._lock:
            now = self._clock()
            if now - self._printed < self._allowed_s:
                return
            if self._as_json:
                self._allowed_s = SILENCE_S
            else:
                self._allowed_s = min(LOG_INTERVAL_S, 2 * self._allowed_s)
            line = activity_line(self._state, now=now)
            if self._as_json:
                self._print_json("alive", {"stage": self._state.stage, "text": line}, now=now)
            else:
                self._print(f"  … {line}", now=now)

    def _print(self, line: str, *, now: float, console: Console | None = None) -> None:
        self._printed = now
        (console or self._console).print(
            printable(line), markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def _print_json(self, name: str, values: dict[str, object], *, now: float) -> None:
        content = {"event": name, "elapsed_s": round(now - self._started, 1), **values}
        self._print(json.dumps(content, default=str), now=now)


class TerminalDisplay:
    """Printer of stages, notes and lines above a live view of the run."""

    def __init__(
        self, console: Console, *, lines: Console | None = None, clock: Clock = time.monotonic
    ) -> None:
        self._console = console
        self._lines = lines or console
        self._clock = clock
        self._lock = threading.Lock()
        self._state = State(since=clock())
        self._spinner = Spinner("dots")

    def report(self, event: ProgressEvent) -> None:
        """Change the live view. Stages, notes, lines and plans are also printed above it."""
        with (
            self._lock
        ):  # not while printing, for which rich waits until its thread has called `view`
            now = self._clock()
            before = self._state
            self._state = next_state(self._state, event, now=now)
        if isinstance(event, StageEvent):
            if before.stage not in ("", event.name):
                took = duration(now - before.since)
                self._console.print(
                    f"  [green]✓[/green] {escape(before.stage)} took {took}", highlight=False
                )
            self._console.print(
                f"[bold]{escape(printable(event.text))}[/bold]", highlight=False, soft_wrap=True
            )
        elif isinstance(event, NoteEvent | LineEvent | PlanEvent):
            if isinstance(event, LineEvent):
                console = self._lines
            else:
                console = self._console
            for line in log_lines(event):
                console.print(
                    printable(line), markup=False, emoji=False, highlight=False, soft_wrap=True
                )

    def view(self) -> RenderableType:
        """Return the live view: the current activity, the stages and the contenders.

        The activity is first, because rich crops the view at the end if the terminal has too few
        lines.
        """
        now = self._clock()
        state = self._state
        self._spinner.update(text=escape(printable(activity_line(state, now=now))))
        parts: list[RenderableType] = [self._spinner]
        if state.plan or state.finished:
            parts.append(stage_table(state, now=now))
        if state.rows:
            parts.append(score_table(state))
        return Group(*parts)

    def close(self) -> None:
        """Print the table of contenders below the notes, where it remains."""
        if self._state.rows:
            self._console.print(score_table(self._state))


def log_lines(event: ProgressEvent) -> list[str]:
    """Return the lines of an event in a log. The line about the activity, after `SILENCE_S`,
    contains its rows."""
    match event:
        case StageEvent(text) | LineEvent(text):
            return [text]
        case NoteEvent(text):
            return [f"  {text}"]
        case PlanEvent():
            return [f"  {line}" for line in plan_lines(event)]
        case ScoreEvent(contender, score, text):
            return [f"  {contender:<12} {score:.3f}  {text}".rstrip()]
        case EpochEvent():
            return [f"  {epoch_name(event)}: validation {event.score:.3f}, {speed(event)}"]
        case StepEvent():
            return [f"  {done_text(event)}"]
    return []


def stage_table(state: State, *, now: float) -> Table:
    """Return the stages with elapsed and expected time; the current one is bold."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for mark, name, text in stage_lines(state, now=now):
        style = {"✓": "green", "▸": "bold"}.get(mark, "dim")
        table.add_row(mark, escape(name), text, style=style)
    return table


def score_table(state: State) -> Table:
    """Return the contenders with the best score first and those without a score last."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "validation", "epochs", "status"):
        table.add_column(name, no_wrap=True)
    table.add_column("settings")
    for row in sorted_rows(state.rows):
        score = "" if row.score is None else f"{row.score:.3f}"
        settings = Text(
            row.text, overflow="ellipsis", no_wrap=True
        )  # the only column that rich may make narrower
        table.add_row(escape(row.name), score, str(row.epochs or ""), row.status, settings)
    return table


@contextmanager
def _ticking(log: LogDisplay) -> Iterator[None]:
    """Call the display's `tick` every second in a thread until the block ends."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK_S):
            with suppress(BrokenPipeError, ValueError):  # the reader of the log has ended
                log.tick()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_repeated(event: ProgressEvent, before: State) -> bool:
    """True for a score that was reported before: while the stage ran in a worker, and then with its
    result."""
    if not isinstance(event, ScoreEvent):
        return False
    known = before.rows.get(event.contender)
    return known is not None and known.score == event.score


def _event_name(event: ProgressEvent) -> str:
    return type(event).__name__.removesuffix("Event").lower()
