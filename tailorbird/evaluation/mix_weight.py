"""Select the weight of a mix of two classifiers on validation."""

from tailorbird.evaluation.baselines.linear_head import HeldOut
from tailorbird.evaluation.baselines.linear_solver import FloatArray
from tailorbird.evaluation.report.evidence import MixRecord

WEIGHTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Weights of the first model's log-probabilities that are tried on validation."""


def select_weight(model: FloatArray, bag: FloatArray, *, held_out: HeldOut) -> MixRecord:
    """Return the weight of the mix with the highest score on validation. If scores are equal, the largest weight wins.

    `model` and `bag` are calibrated logits [N, L] of the validation rows. Each mix is scored with its own offsets.
    """
    scores = {weight: held_out.fit_offsets(weight * model + (1 - weight) * bag).score for weight in (1.0, *WEIGHTS)}
    best = max(scores, key=lambda weight: scores[weight])
    return MixRecord(best, num_weights=len(WEIGHTS), validation=scores[best], unmixed=scores[1.0])
