"""Store the progress of a run on S3 while it is under way, so that it can be seen from anywhere.

The record is built from the events that the terminal shows. It is small: the latest notes, and a
bounded number of contenders and of points of their learning curves.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from cluster.display.state import Row, State, next_state, training_name
from cluster.progress import (
    EpochEvent,
    NoteEvent,
    ProgressEvent,
    ProgressReporter,
    RowsEvent,
    StepEvent,
)
from tailorbird import storage
from tailorbird.config.metrics import METRICS
from tailorbird.pipeline.prepare import RunContext
from tailorbird.registry.run_progress import ContenderProgress, RunProgress, StageProgress
from tailorbird.registry.versions import now
from tailorbird.storage import StorageError
from tailorbird.storage.paths import parse_run_uri

MAX_CONTENDERS = 100
MAX_POINTS = 50
MAX_NOTES = 20
MAX_TEXT = 300
WRITE_S = 5.0  # minimum seconds between two writes
ALIVE_S = 60.0  # maximum seconds between two writes, which show that the driver is alive

Clock = Callable[[], float]
StageState = Literal["finished", "running", "planned"]


@dataclass(frozen=True)
class Course:
    """The state of a run with its notes and learning curves, by the name of the training."""

    state: State
    notes: tuple[str, ...] = ()
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)


def next_course(course: Course, event: ProgressEvent, *, now_s: float) -> Course:
    """Return the course after an event at a time in seconds of a monotonic clock."""
    course = replace(course, state=next_state(course.state, event, now=now_s))
    match event:
        case NoteEvent(text):
            return replace(course, notes=(*course.notes, _short(text))[-MAX_NOTES:])
        case EpochEvent():
            name = training_name(event)
            before = tuple(
                point for point in course.curves.get(name, ()) if point[0] <= event.epoch
            )
            curve = (*before, (event.epoch + 1, event.score))[-MAX_POINTS:]
            return replace(course, curves={**course.curves, name: curve})
    return course


def stages_of(state: State, *, now_s: float) -> tuple[StageProgress, ...]:
    """Return the finished, current and planned stages in order."""
    stages: dict[str, StageProgress] = {}
    for plan in state.plan:
        stages[plan.name] = StageProgress(
            name=plan.name, state="planned", expected_s=plan.seconds, basis=plan.basis
        )
    started: list[tuple[str, StageState, float]] = [
        (name, "finished", seconds) for name, seconds in state.finished
    ]
    if state.stage:
        started.append((state.stage, "running", now_s - state.since))
    past = []
    for name, stage_state, seconds in started:
        planned = stages.pop(name, None) or StageProgress(name=name, state=stage_state)
        past.append(planned.model_copy(update={"state": stage_state, "seconds": round(seconds, 1)}))
    return (*past, *stages.values())


def contenders_of(course: Course) -> tuple[ContenderProgress, ...]:
    """Return at most `MAX_CONTENDERS` contenders: the first ones, and the best of the others."""
    rows = list(course.state.rows.values())
    first = rows[: MAX_CONTENDERS // 2]
    best = sorted(rows[len(first) :], key=lambda row: -(row.score or 0.0))
    return tuple(_contender(row, course) for row in first + best[: MAX_CONTENDERS - len(first)])


def _contender(row: Row, course: Course) -> ContenderProgress:
    return ContenderProgress(
        name=row.name,
        score=row.score,
        status=row.status,
        text=_short(row.text),
        curve=course.curves.get(row.name, ()),
    )


class ProgressRecord:
    """The record of one run. `report` receives the events; a thread writes the record (see
    `recorded`)."""

    def __init__(self, first: RunProgress, *, clock: Clock = time.monotonic) -> None:
        self._first = first
        self._clock = clock
        self._course = Course(State(since=clock()))
        self._lock = threading.Lock()
        self._changed = True
        self._written_s = -ALIVE_S

    def report(self, event: ProgressEvent) -> None:
        with self._lock:
            self._course = next_course(self._course, event, now_s=self._clock())
            self._changed = True

    def current(self) -> RunProgress:
        """Return the record as of now."""
        with self._lock:
            course = self._course
            now_s = self._clock()
        done = course.state.done
        update: dict[str, object] = {
            "updated_at": now(),
            "stages": stages_of(course.state, now_s=now_s),
            "activity": _short(course.state.activity),
            "contenders": contenders_of(course),
            "notes": course.notes,
        }
        if isinstance(done, RowsEvent):
            update["rows"] = (done.done, done.total)
        elif isinstance(done, StepEvent):
            update["rows"] = (done.step, done.num_steps)
        if done is not None:
            update["seconds_left"] = done.seconds_left
        return self._first.model_copy(update=update)

    def write_if_due(self) -> None:
        """Write the record if it has changed, at most every `WRITE_S`, or if it was not written for
        `ALIVE_S`."""
        waited = self._clock() - self._written_s
        if waited >= ALIVE_S or (self._changed and waited >= WRITE_S):
            self._changed = False
            self._written_s = self._clock()
            self.write(self.current())

    def write(self, record: RunProgress) -> None:
        """Write the record; raise StorageError if that is not possible."""
        paths, name = parse_run_uri(self._first.run)
        storage.write_bytes(paths.progress(name), record.model_dump_json().encode())


def first_record(context: RunContext) -> RunProgress:
    """Return the record of a run that starts now."""
    num_rows = None
    if METRICS[context.protocol.metric].is_share:
        num_rows = len(context.splits.validation)
    return RunProgress(
        run=context.run,
        name=context.recipe.name,
        requested_by=context.registered.requested_by,
        base_model=", ".join(map(str, context.recipe.base_models)),
        validation_rows=num_rows,
        status="running",
        started_at=now(),
        updated_at=now(),
    )


@contextmanager
def recorded(progress: ProgressReporter, *, first: RunProgress) -> Iterator[ProgressReporter]:
    """Yield a reporter that also stores the progress of a run until the block ends.

    The last record says whether the block raised an exception. A record that cannot be written is
    reported once and does not end the run, because the run itself needs none.
    """
    record = ProgressRecord(first)
    over = threading.Event()
    reported = False

    def report(event: ProgressEvent) -> None:
        record.report(event)
        progress.report(event)

    def attempt(write: Callable[[], None]) -> None:
        nonlocal reported
        try:
            write()
        except StorageError as error:
            if not reported:
                progress.note(
                    f"the progress cannot be stored, and the console does not show it: {error}"
                )
            reported = True

    def follow() -> None:
        while not over.wait(1.0):
            attempt(record.write_if_due)

    attempt(record.write_if_due)
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    last: dict[str, object] = {"status": "finished", "activity": ""}
    try:
        yield ProgressReporter(report)
    except BaseException as error:
        last = {"status": "failed", "error": _reason(error)}
        raise
    finally:
        over.set()
        thread.join()
        attempt(lambda: record.write(record.current().model_copy(update=last)))


def _reason(error: BaseException) -> str:
    """Return the reason of a failure. SIGTERM raises KeyboardInterrupt too: see
    `cluster.connection`."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "the driver was stopped (Ctrl-C or SIGTERM)"
    return _short(f"{type(error).__name__}: {error}".removesuffix(": "))


def _short(text: str) -> str:
    """Return the text on one line, cut to `MAX_TEXT` characters."""
    line = " ".join(text.split())
    if len(line) <= MAX_TEXT:
        return line
    return f"{line[: MAX_TEXT - 1]}…"
