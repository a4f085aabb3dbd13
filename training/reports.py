"""Reports of a training: its epochs, progress and result. Imports neither ray nor torch."""

from dataclasses import dataclass

from tailorbird.registry.versions import Dtype
from tailorbird.storage.stored_model import StoredModel


@dataclass(frozen=True)
class EpochReport:
    """Report of an epoch, the same on every rank."""

    epoch: int
    score: float  # the task's metric on the validation rows
    loss: float  # mean training loss of the epoch
    rows_per_second: float
    step_seconds: float  # time in training steps of this epoch
    total_seconds: float  # time in training steps of this and all earlier epochs
    padding_share: float  # share of padding in the computed tokens, in [0, 1]
    attention: str = "dense"  # that was used: `flash` or `dense`


@dataclass
class Progress:
    """Progress of a rank between two steps. A resume needs it in addition to weights and random
    states."""

    epoch: int = 0
    step: int = 0  # finished steps of the epoch
    losses: float = 0.0  # sum of the losses of these steps
    tokens: int = 0  # tokens of this rank's rows in these steps
    padded: int = 0  # computed tokens, including padding
    seconds: float = 0.0  # time in these steps
    last: EpochReport | None = None  # report of the previous epoch


class TrainingResult(StoredModel):
    """Result of a finished training."""

    weights: str  # URI of the folder with the exported weights; empty if they were not exported
    score: float  # validation score of the last epoch
    epochs: int
    rows_per_second: float  # in the last epoch
    padding_share: float  # in the last epoch, in [0, 1]
    step_seconds: float  # time in training steps of all epochs
    attention: str = "dense"  # `flash` or `dense`
    dtype: Dtype  # in which the worker trained and scored the model, for evaluation and serving

    @classmethod
    def from_report(cls, report: EpochReport, *, weights: str, dtype: Dtype) -> "TrainingResult":
        """Return the result of a training with this report of its last epoch."""
        return cls(
            weights=weights,
            score=report.score,
            epochs=report.epoch + 1,
            rows_per_second=report.rows_per_second,
            padding_share=report.padding_share,
            step_seconds=report.total_seconds,
            attention=report.attention,
            dtype=dtype,
        )
