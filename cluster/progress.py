"""Progress events of a run, and the reporter that functions pass them to."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

REPORT_INTERVAL_S = 1.0  # minimum seconds between two RowsEvents


@dataclass(frozen=True)
class PlannedStage:
    """The expected duration of a stage, and how it was computed."""

    name: str  # as `StageEvent.name`
    seconds: float
    basis: str  # such as `400 rows at 12 rows/s`


@dataclass(frozen=True)
class PlanEvent:
    """The expected durations of the stages to come, in order."""

    stages: tuple[PlannedStage, ...]
    text: str  # how the rates were measured


@dataclass(frozen=True)
class StageEvent:
    """The start of a stage of a run. The same name again continues the stage, as for several
    seeds."""

    text: str
    name: str


@dataclass(frozen=True)
class NoteEvent:
    """A line about the current stage."""

    text: str


@dataclass(frozen=True)
class ActivityEvent:
    """What the current stage does from now on, or what it waits for."""

    text: str


@dataclass(frozen=True)
class RowsEvent:
    """Progress of the current activity over its rows, sent about once per second."""

    done: int
    total: int
    rows_per_second: float
    unit: str = "rows"

    @property
    def seconds_left(self) -> float | None:
        """Time left at this rate; None without a rate."""
        if not self.rows_per_second:
            return None
        return (self.total - self.done) / self.rows_per_second


@dataclass(frozen=True)
class ScoreEvent:
    """The validation score of a contender that is fitted or trained."""

    contender: str
    score: float
    text: str


@dataclass(frozen=True)
class TrialEvent:
    """A change of the status of a trial."""

    trial: str
    config: Mapping[str, object]
    status: str  # `training`, `completed`, `stopped` or `failed`


@dataclass(frozen=True)
class EpochEvent:
    """The end of an epoch of a trial or seed run."""

    epoch: int  # from 0
    score: float  # on the validation rows
    loss: float  # mean training loss over the epoch
    rows_per_second: float
    seed: int | None = None
    trial: str | None = None


@dataclass(frozen=True)
class StepEvent:
    """Progress within an epoch, sent about once per second."""

    epoch: int
    step: int
    num_steps: int
    loss: float
    rows_per_second: float
    seed: int | None = None
    trial: str | None = None
    seconds_left: float | None = None
    """Time left in the steps of all epochs of this training, at the current rate."""


ProgressEvent = (
    PlanEvent
    | StageEvent
    | NoteEvent
    | ActivityEvent
    | RowsEvent
    | ScoreEvent
    | TrialEvent
    | EpochEvent
    | StepEvent
)


class ProgressReporter:
    """Reporter that passes progress events to the function `report`, which displays or records
    them."""

    def __init__(self, report: Callable[[ProgressEvent], None]) -> None:
        self.report = report

    def stage(self, text: str, *, name: str | None = None) -> None:
        """Report the start of a stage. By default, its name is the text before the first colon."""
        self.report(StageEvent(text, name or text.partition(":")[0]))

    def note(self, text: str) -> None:
        self.report(NoteEvent(text))

    def activity(self, text: str) -> None:
        self.report(ActivityEvent(text))

    def wait(self, text: str) -> None:
        """Report at once what the run waits for, and as the activity until another one starts."""
        self.note(text)
        self.activity(text)

    def score(self, contender: str, score: float, text: str = "") -> None:
        self.report(ScoreEvent(contender, score, text))


SILENT = ProgressReporter(lambda _: None)

_current: ContextVar[ProgressReporter] = ContextVar("progress", default=SILENT)


def current_progress() -> ProgressReporter:
    """Return the reporter of the command in this process, or of the run whose Ray task this is;
    else SILENT."""
    return _current.get()


@contextmanager
def reporting_to(progress: ProgressReporter) -> Iterator[ProgressReporter]:
    """Make `progress` the result of `current_progress` during the block, and yield it."""
    token = _current.set(progress)
    try:
        yield progress
    finally:
        _current.reset(token)


Batch = TypeVar("Batch", bound=Sized)


def tracked(batches: Iterable[Batch], *, total: int) -> Iterator[Batch]:
    """Yield batches of rows, and report to `current_progress` how many of `total` rows are done."""
    count = counter(total)
    for batch in batches:
        yield batch
        count(len(batch))


def counter(total: int, *, unit: str = "rows") -> Callable[[int], None]:
    """Return a function that adds a number to what is done of `total`, and reports it to
    `current_progress`.

    The reporter is that of this call, so another thread can call the function.
    """
    progress = current_progress()
    started = time.monotonic()
    done = 0
    reported = started

    def count(number: int) -> None:
        nonlocal done, reported
        done = done + number
        now = time.monotonic()
        if progress is not SILENT and now - reported >= REPORT_INTERVAL_S and done < total:
            reported = now
            progress.report(RowsEvent(done, total, done / (now - started), unit=unit))

    return count


def byte_reporter(progress: ProgressReporter) -> Callable[[str, int, int], None]:
    """Return a function that takes an activity and its bytes, done and in total, and reports them
    in MB."""
    activity = ""
    started = 0.0
    reported = 0.0

    def report(text: str, done: int, total: int) -> None:
        nonlocal activity, started, reported
        now = time.monotonic()
        if text != activity:
            activity = text
            started = now
            reported = now
            progress.activity(text)
        elif now - reported >= REPORT_INTERVAL_S:
            reported = now
            progress.report(
                RowsEvent(done // 10**6, total // 10**6, done / 10**6 / (now - started), unit="MB")
            )

    return report
