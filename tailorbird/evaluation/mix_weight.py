"""Select the weight of a mix of two classifiers on validation."""

from dataclasses import dataclass

from tailorbird.evaluation.baselines.linear_head import HeldOut
from tailorbird.evaluation.baselines.linear_solver import FloatArray

WEIGHTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Weights of the first model's log-probabilities that are tried on validation."""


@dataclass(frozen=True)
class MixRecord:
    """A classifier mixed with a bag of words, by a weight that was selected on validation."""

    # of the classifier's log-probabilities; the bag of words has the rest. 1 if no mix is better
    weight: float
    validation: float  # score with this weight
    unmixed: float  # score of the classifier alone


def select_weight(model: FloatArray, bag: FloatArray, *, held_out: HeldOut) -> MixRecord:
    """Return the weight of the mix with the highest score on validation. If scores are equal, the
    largest weight wins.

    `model` and `bag` are calibrated logits [N, L] of the validation rows. Each mix is scored with
    its own offsets.
    """
    scores = {}
    for weight in (1.0, *WEIGHTS):
        scores[weight] = held_out.fit_offsets(weight * model + (1 - weight) * bag).score
    best = max(scores, key=scores.__getitem__)
    return MixRecord(best, validation=scores[best], unmixed=scores[1.0])
