"""What a training reports: each epoch, how far it is, and its result. Imports neither ray nor torch."""

from dataclasses import dataclass

from tailorbird.storage.stored_model import StoredModel


@dataclass(frozen=True)
class EpochReport:
    """An epoch; the same on every rank."""

    epoch: int
    score: float  # on the validation rows, by the task's metric
    loss: float  # mean training loss of the epoch
    rows_per_second: float
    step_seconds: float  # inside training steps, in this epoch
    total_seconds: float  # inside training steps, in this and all earlier epochs
    padding_share: float  # padding among the tokens computed, in [0, 1]


@dataclass
class Progress:
    """How far a rank is between two steps: what a resume needs besides weights and random states."""

    epoch: int = 0
    step: int = 0  # steps done in the epoch
    losses: float = 0.0  # sum of the losses of these steps
    tokens: int = 0  # tokens of this rank's rows
    padded: int = 0  # tokens computed, including padding
    seconds: float = 0.0  # inside these steps
    last: EpochReport | None = None  # report of the previous epoch


class TrainingResult(StoredModel):
    """A finished training: its weights and what was measured on validation rows."""

    weights: str  # URI of the folder with the exported weights; empty if they were not exported
    score: float
    epochs: int
    rows_per_second: float  # of the last epoch
    padding_share: float  # of the last epoch, in [0, 1]
    step_seconds: float  # inside training steps, over all epochs

    @classmethod
    def of_report(cls, report: EpochReport, *, weights: str) -> "TrainingResult":
        """Return the result of a training whose last epoch gave this report."""
        return cls(
            weights=weights,
            score=report.score,
            epochs=report.epoch + 1,
            rows_per_second=report.rows_per_second,
            padding_share=report.padding_share,
            step_seconds=report.total_seconds,
        )
