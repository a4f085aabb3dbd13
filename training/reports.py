"""What a training reports: each step, each epoch, how far it is, and its result. Imports neither ray nor torch."""

from dataclasses import dataclass

from tailorbird.storage.stored_model import StoredModel


@dataclass(frozen=True)
class StepReport:
    """Sent about once a second by rank 0; `rows_per_second` counts all ranks."""

    epoch: int
    step: int
    num_steps: int
    loss: float
    rows_per_second: float


@dataclass(frozen=True)
class EpochReport:
    """An epoch; the same on every rank."""

    epoch: int
    score: float
    """On the validation rows, by the task's metric."""
    loss: float
    """Mean training loss of the epoch."""
    rows_per_second: float
    step_seconds: float
    """Seconds inside training steps in this epoch."""
    total_seconds: float
    """Seconds inside training steps in this and all earlier epochs."""
    padding_share: float
    """Padding among the tokens computed, in [0, 1]."""


@dataclass
class Progress:
    """How far a rank is between two steps: what a resume needs besides weights and random states."""

    epoch: int = 0
    step: int = 0
    """Steps done in the epoch."""
    losses: float = 0.0
    """Sum of the losses of these steps."""
    tokens: int = 0
    """Tokens of this rank's rows."""
    padded: int = 0
    """Tokens computed, including padding."""
    seconds: float = 0.0
    """Seconds inside these steps."""
    last: EpochReport | None = None
    """Report of the previous epoch."""


class TrainingResult(StoredModel):
    """A finished training: its weights and what was measured on validation rows."""

    weights: str
    """URI of the folder with the exported weights; empty if they were not exported."""
    score: float
    epochs: int
    rows_per_second: float
    """Of the last epoch."""
    padding_share: float
    """Of the last epoch, in [0, 1]."""
    step_seconds: float
    """Seconds inside training steps, over all epochs."""

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
