"""Score a model by the recipe's metric; imports little, because every training worker imports this module."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.bootstrap import macro_f1


def score_of(metric: str, *, labels: Sequence[Any] | NDArray[Any], outputs: Sequence[Any] | NDArray[Any]) -> float:
    """Return the `accuracy` or `macro_f1` of a model; labels and outputs are [N]."""
    if metric == "macro_f1":
        return macro_f1(list(labels), outputs=list(outputs))
    return float(np.mean([label == output for label, output in zip(labels, outputs, strict=True)]))


def score_table(metric: str, table: Predictions) -> float:
    """Return a model's score in any metric of a recipe."""
    if metric == "macro_f1":
        return macro_f1(table.labels, outputs=table.outputs)
    return float(np.mean(table.per_row(metric)))
