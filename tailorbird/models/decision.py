"""From a classifier's logits to its answer: the label is the class with the highest logit, and the
scores are probabilities by temperature scaling."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def temperature_softmax(logits: NDArray[Any], *, temperature: float) -> NDArray[Any]:
    """Return softmax(logits / temperature) over the last axis, in the logits' dtype.

    A temperature above 1 makes the model less confident and keeps the order of the classes (Guo et
    al., On Calibration of Modern Neural Networks, 2017).
    """
    weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def at_index(probabilities: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """Return the probability [N] of one class per row, from probabilities [N, L] and class indices
    [N]."""
    return np.asarray(np.take_along_axis(probabilities, index[:, None], axis=1)[:, 0])
