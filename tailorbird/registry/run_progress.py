"""The progress of a run, as the driver stores it while the run is under way; see
`pipeline.progress_record`."""

from typing import Literal

from tailorbird.registry.versions import Frozen
from tailorbird.storage.stored_model import StoredModel


class StageProgress(Frozen):
    """A stage that is finished, under way or planned."""

    name: str
    state: Literal["finished", "running", "planned"]
    seconds: float | None = None  # so far; None for a planned stage
    expected_s: float | None = None
    basis: str = ""  # how the expected time was computed


class ContenderProgress(Frozen):
    """A baseline, a trial or a seed run."""

    name: str
    score: float | None = None  # on the validation rows, after the latest epoch
    status: str = ""  # of a trial: `training`, `completed`, `stopped` or `failed`
    text: str = ""  # configuration of a trial, settings of a baseline
    curve: tuple[tuple[int, float], ...] = ()
    """Epoch, from 1, and validation score; empty for a baseline."""


class RunProgress(StoredModel):
    """The progress of a run. Its size is bounded: see the limits in `pipeline.progress_record`."""

    run: str
    """URI of the run."""
    name: str
    """Name of the task."""
    requested_by: str
    base_model: str
    status: Literal["running", "finished", "failed"]
    error: str | None = None
    """Reason of the failure."""
    started_at: str
    """Start of the current attempt, ISO 8601, as all times in this record."""
    updated_at: str
    """Written at least once a minute while the run is under way."""
    stages: tuple[StageProgress, ...] = ()
    activity: str = ""
    """What the run does now."""
    validation_rows: int | None = None
    """Validation rows, if a score is the share of correct ones; None for other metrics."""
    rows: tuple[int, int] | None = None
    """Rows or steps of the activity: done, and all."""
    seconds_left: float | None = None
    """Of the activity."""
    contenders: tuple[ContenderProgress, ...] = ()
    """In the order in which they were first reported."""
    notes: tuple[str, ...] = ()
    """The latest notes, oldest first."""
