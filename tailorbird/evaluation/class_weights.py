"""Weights of the classes in a training loss, by the sizes of the classes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.training import ClassWeights

POWERS: dict[ClassWeights, float] = {"equal": 0.0, "square-root": 0.5, "balanced": 1.0}


def weights_of_classes(
    counts: Sequence[int] | NDArray[np.int64], *, kind: ClassWeights
) -> NDArray[np.float32]:
    """Return a weight per class [L] from the numbers of training rows [L], each at least 1. Their
    mean over rows is 1.

    The weight of a class of n rows is in proportion to 1 / n (`balanced`) or 1 / sqrt(n)
    (`square-root`).
    """
    sizes = np.asarray(counts, dtype=np.float64)
    weights = sizes ** -POWERS[kind]
    return np.asarray(weights * (sizes.sum() / (weights @ sizes)), dtype=np.float32)
