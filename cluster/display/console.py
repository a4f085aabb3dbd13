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
)
from cluster.progress import (
    EpochEvent,
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
    clock: Clock = time.monotonic,
) -> Iterator[ProgressReporter]:
    """Yield a reporter that prints events on a console, also as `current_progress` of this process.

    On a terminal, a live view shows the current activity with the elapsed and expected time, and
    all contenders, which are printed once more at the end. With `as_json`, each
    event is a JSON object on a line. Without a terminal, no output is wrapped or colored.
    """
    shown = Display(console, as_json=as_json, clock=clock)
    with shown.updated(), reporting_to(ProgressReporter(shown.report)) as progress:
        yield progress


class Display:
    """Printer of events as lines: in a log, also of the current activity after a silence; on a
    terminal, above a live view of the run."""

    def __init__(self, console: Console, *, as_json: bool = False, clock: Clock) -> None:
        self._console = console
        self._as_json = as_json
        self._is_live = console.is_terminal and not as_json
        self._clock = clock
        self._lock = threading.Lock()
        self._started = self._printed = self._steps_printed = clock()
        self._state = State(since=self._started)
        self._allowed_s = SILENCE_S
        self._spinner = Spinner("dots")

    @contextmanager
    def updated(self) -> Iterator[None]:
        """Update the live view, or call `tick` every second in a log, until the block ends.

        The table of contenders is then printed below the notes, where it remains.
        """
        if not self._is_live:
            with _ticking(self):
                yield
            return
        with Live(console=self._console, transient=True, get_renderable=self.view):
            try:
                yield
            finally:
                if self._state.rows:
                    self._console.print(score_table(self._state))

    def report(self, event: ProgressEvent) -> None:
        """Print the event, unless it only changes the current activity or the live view."""
        with self._lock:
            now = self._clock()
            before = self._state
            self._state = next_state(before, event, now=now)
            is_new_stage = self._state.stage != before.stage
            if is_new_stage or self._state.activity != before.activity:
                self._allowed_s = SILENCE_S
            if not self._is_printed(event, before=before, now=now):
                return
            if self._as_json:
                name = type(event).__name__.removesuffix("Event").lower()
                self._print_json(name, asdict(event), now=now)
                return
            seconds = now - before.since
            if is_new_stage and before.stage and seconds >= MIN_SHOWN_S:
                self._print(f"  {before.stage} took {duration(seconds)}", now=now)
            for line in log_lines(event):
                self._print(line, now=now)

    def _is_printed(self, event: ProgressEvent, *, before: State, now: float) -> bool:
        """False for what the live view shows, for frequent steps, and for a score that was reported
        before: while the stage ran in a worker, and then with its result."""
        if self._is_live:
            return isinstance(event, StageEvent | NoteEvent | PlanEvent)
        if isinstance(event, StepEvent | RowsEvent):
            if now - self._steps_printed < LOG_INTERVAL_S:
                return False
            self._steps_printed = now
        if isinstance(event, ScoreEvent):
            known = before.rows.get(event.contender)
            return known is None or known.score != event.score
        return True

    def tick(self) -> None:
        """Print the current activity if nothing was printed for the allowed time."""
        with self._lock:
            now = self._clock()
            if now - self._printed < self._allowed_s:
                return
            line = activity_line(self._state, now=now)
            if self._as_json:
                self._allowed_s = SILENCE_S
                self._print_json("alive", {"stage": self._state.stage, "text": line}, now=now)
            else:
                self._allowed_s = min(LOG_INTERVAL_S, 2 * self._allowed_s)
                self._print(f"  … {line}", now=now)

    def _print(self, line: str, *, now: float) -> None:
        self._printed = now
        self._console.print(
            printable(line), markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def _print_json(self, name: str, values: dict[str, object], *, now: float) -> None:
        content = {"event": name, "elapsed_s": round(now - self._started, 1), **values}
        self._print(json.dumps(content, default=str), now=now)

    def view(self) -> RenderableType:
        """Return the live view: the current activity and the contenders.

        The activity is first, because rich crops the view at the end if the terminal has too few
        lines. It takes no lock, because rich calls it while `report` waits to print.
        """
        now = self._clock()
        state = self._state
        self._spinner.update(text=escape(printable(activity_line(state, now=now))))
        if state.rows:
            return Group(self._spinner, score_table(state))
        return self._spinner


def log_lines(event: ProgressEvent) -> list[str]:
    """Return the lines of an event in a log. The line about the activity, after `SILENCE_S`,
    contains its rows."""
    match event:
        case StageEvent(text):
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
def _ticking(log: Display) -> Iterator[None]:
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
