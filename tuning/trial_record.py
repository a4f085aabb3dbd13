"""The state of each trial, as the sweep's journal stores it. Imports neither ray nor torch."""

from pydantic import BaseModel, JsonValue

from tailorbird.storage import exists, read_json, write_json
from tailorbird.storage.s3 import PERSISTENT
from tailorbird.storage.stored_model import StoredModel
from training.reports import EpochReport, TrainingResult

SampledValues = dict[str, JsonValue]  # values of a trial's hyperparameters, by the field of the training config


class TrialRecord(BaseModel, extra="forbid"):
    """A trial and how far it is; updated in place by the TrialBroker."""

    trial: str  # its name
    config: SampledValues
    epochs: list[EpochReport] = []
    completed: bool = False  # the last epoch was reported; its weights may still be exported
    checkpoint: str | None = None  # URI of the newest checkpoint, from which the trial resumes
    result: TrainingResult | None = None  # of a finished trial
    failure: str | None = None
    failed_by_workers: bool = False
    """True if the worker groups failed, not the trial itself: a sweep that is run again tries it again."""
    ended_with_sweep: bool = False  # it was not over when the whole sweep was ended

    @property
    def over(self) -> bool:
        """True if no worker group has to take the trial again."""
        return self.result is not None or self.failure is not None

    @property
    def scores(self) -> tuple[float, ...]:
        """Validation score after each epoch."""
        return tuple(report.score for report in self.epochs)

    @property
    def exported_rank(self) -> tuple[bool, float] | None:
        """Rank among trials with exported weights, higher is better: completed trials first, then by score."""
        return (self.completed, self.scores[-1]) if self.result is not None and self.result.weights else None


class SweepJournal(StoredModel):
    """The trials of a sweep in the order in which they were submitted; a sweep that is run again resumes from it."""

    trials: tuple[TrialRecord, ...] = ()
    ended: str | None = None  # why the sweep ended before all trials had run, if it did


def read_journal(uri: str) -> SweepJournal:
    """Return the journal of the sweep in `uri`; an empty one if the sweep has not started."""
    location = f"{uri}/journal.json"
    return SweepJournal.model_validate(read_json(location)) if exists(location) else SweepJournal()


def write_journal(journal: SweepJournal, *, uri: str) -> None:
    """Write the journal, with as many retries as workers have: a worker's report waits for it."""
    write_json(f"{uri}/journal.json", journal.model_dump(mode="json"), retry_policy=PERSISTENT)
