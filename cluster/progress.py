"""Progress events of a run, and the reporter that functions pass them to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageEvent:
    """The start of a stage of a run."""

    text: str
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Validation score by kind of baseline, shown in the table of a sweep."""


@dataclass(frozen=True)
class NoteEvent:
    """A line about the current stage."""

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


ProgressEvent = StageEvent | NoteEvent | TrialEvent | EpochEvent | StepEvent


class ProgressReporter:
    """Reporter that passes progress events to the function `report`, which displays or records them."""

    def __init__(self, report: Callable[[ProgressEvent], None]) -> None:
        self.report = report

    def stage(self, text: str, *, baselines: Mapping[str, float] | None = None) -> None:
        self.report(StageEvent(text, baselines or {}))

    def note(self, text: str) -> None:
        self.report(NoteEvent(text))


SILENT = ProgressReporter(lambda _: None)
