"""Progress events of a run, and the reporter that functions hand them to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageEvent:
    """A stage of a run begins."""

    text: str
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Validation score by kind of baseline, which a sweep's table shows next to its trials."""


@dataclass(frozen=True)
class NoteEvent:
    """A line about the stage that runs."""

    text: str


@dataclass(frozen=True)
class TrialEvent:
    """A trial of a sweep changed its status."""

    trial: str
    config: Mapping[str, object]
    status: str  # `training`, `completed`, `stopped` or `failed`


@dataclass(frozen=True)
class EpochEvent:
    """An epoch of a trial, or of the training of a seed, ended."""

    epoch: int  # from 0
    score: float  # on the validation rows
    loss: float  # mean training loss of the epoch
    rows_per_second: float
    seed: int | None = None
    trial: str | None = None


@dataclass(frozen=True)
class StepEvent:
    """Training progressed; sent about once a second."""

    epoch: int
    step: int
    num_steps: int
    loss: float
    rows_per_second: float
    seed: int | None = None
    trial: str | None = None


ProgressEvent = StageEvent | NoteEvent | TrialEvent | EpochEvent | StepEvent


class ProgressReporter:
    """Passes progress events to `report`, which displays or records them."""

    def __init__(self, report: Callable[[ProgressEvent], None]) -> None:
        self.report = report

    def stage(self, text: str, *, baselines: Mapping[str, float] | None = None) -> None:
        self.report(StageEvent(text, baselines or {}))

    def note(self, text: str) -> None:
        self.report(NoteEvent(text))


SILENT = ProgressReporter(lambda _: None)
