"""Select the weight of a mix of two classifiers on validation."""

from dataclasses import dataclass

from tailorbird.evaluation.baselines.linear_head import HeldOut
from tailorbird.evaluation.baselines.linear_solver import FloatArray

WEIGHTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Weights of the first model's log-probabilities that are tried on validation."""


@dataclass(frozen=True)
class MixWeight:
    """The selected weight of the first model, and the scores on validation."""

    weight: float  # 1 if no mix is better than the first model alone
    validation: float
    unmixed: float


def select_weight(model: FloatArray, bag: FloatArray, *, held_out: HeldOut) -> MixWeight:
    """Return the weight of the mix with the highest score on validation. If scores are equal, the largest weight wins.

    `model` and `bag` are calibrated logits [N, L] of the validation rows. Each mix is scored with its own offsets.
    """
    scores = {weight: held_out.fit_offsets(weight * model + (1 - weight) * bag).score for weight in (1.0, *WEIGHTS)}
    best = max(scores, key=lambda weight: scores[weight])
    return MixWeight(best, validation=scores[best], unmixed=scores[1.0])
