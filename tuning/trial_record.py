"""The sweep's journal: the stored state of each trial. Imports neither ray nor torch."""

from pydantic import BaseModel, JsonValue

from tailorbird.storage import exists, read_json, write_json
from tailorbird.storage.s3 import PERSISTENT
from tailorbird.storage.stored_model import StoredModel
from training.reports import EpochReport, TrainingResult

SampledValues = dict[str, JsonValue]
"""A trial's hyperparameters by field of the training config, and `BASE_MODEL` in a sweep of several
base models."""
BASE_MODEL = "base_model"


class TrialRecord(BaseModel, extra="forbid"):
    """State of a trial. The TrialBroker updates it in place."""

    trial: str  # name of the trial
    config: SampledValues  # as sampled
    batch_tokens: int | None = None
    """Limit of a micro-batch after a GPU ran out of memory, in place of the config's."""
    epochs: list[EpochReport] = []
    completed: bool = False
    """True if the last epoch was reported; the weights may not be exported yet."""
    checkpoint: str | None = None  # URI of the newest checkpoint, from which the trial resumes
    result: TrainingResult | None = None  # result of a finished trial
    failure: str | None = None
    failed_by_workers: bool = False
    """True if worker groups failed. A sweep that is run again retries such a trial, since it can
    have other workers, or a change of the recipe that needs less memory."""

    @property
    def over(self) -> bool:
        """True if no worker group must take the trial again."""
        return self.result is not None or self.failure is not None

    @property
    def trained_config(self) -> SampledValues:
        """The values with which worker groups train the trial."""
        if self.batch_tokens is None:
            return self.config
        return self.config | {"batch_tokens": self.batch_tokens}

    @property
    def scores(self) -> tuple[float, ...]:
        """Validation score after each epoch."""
        return tuple(report.score for report in self.epochs)

    @property
    def exported_rank(self) -> tuple[bool, float] | None:
        """Rank among trials with exported weights, higher is better: completed trials first, then
        by score."""
        if self.result is not None and self.result.weights:
            return (self.completed, self.scores[-1])
        return None


class SweepJournal(StoredModel):
    """The trials of a sweep in the order of submission. A sweep that is run again resumes from
    it."""

    trials: tuple[TrialRecord, ...] = ()


def read_journal(uri: str) -> SweepJournal:
    """Return the journal of the sweep in `uri`, or an empty journal if the sweep has not
    started."""
    location = f"{uri}/journal.json"
    if exists(location):
        return SweepJournal.model_validate(read_json(location))
    return SweepJournal()


def write_journal(journal: SweepJournal, *, uri: str) -> None:
    """Write the journal, with as many retries as workers use, because a worker's report waits for
    it."""
    write_json(f"{uri}/journal.json", journal.model_dump(mode="json"), retry_policy=PERSISTENT)
