"""Score a model by the recipe's metric; imports little, because every training worker imports this
module."""

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.metrics import METRICS

if TYPE_CHECKING:
    from tailorbird.evaluation.predictions import Predictions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HIGHEST_SCORE = 1.0
"""The highest score in every metric of a recipe."""


def f1(right: IntArray, support: IntArray, answered: IntArray) -> FloatArray:
    """Return the F1 of classes from the rows that are right, of the class, and answered with it,
    elementwise.

    It is 0 for a class without rows and answers.
    """
    return np.asarray(2 * right / np.maximum(support + answered, 1), dtype=np.float64)


CLASS_SCORES: Mapping[str, Callable[[IntArray, IntArray, IntArray], FloatArray]] = {"macro_f1": f1}
"""Score of a class, as in `f1`, by metric. A class without right rows must have the score 0."""


def score_of(
    metric: str, *, labels: Sequence[Any] | NDArray[Any], outputs: Sequence[Any] | NDArray[Any]
) -> float:
    """Return a classifier's score in any metric of classification; labels and outputs are [N].

    A mean over classes is that over the classes that occur in the labels. Macro-F1 is that of
    scikit-learn: `f1_score(..., labels=sorted(set(labels)), average="macro", zero_division=0)`.
    """
    labels = list(labels)
    outputs = list(outputs)
    if not METRICS[metric].is_over_classes:
        return float(
            np.mean([label == output for label, output in zip(labels, outputs, strict=True)])
        )
    if not labels:
        raise ValueError(f"labels are empty; {METRICS[metric].title} needs at least one row")
    classes = {label: code for code, label in enumerate(sorted(set(labels)))}
    truth = class_codes(labels, classes)
    answers = class_codes(outputs, classes)
    num_classes = len(classes)
    support = np.bincount(truth)
    right = np.bincount(truth[truth == answers], minlength=num_classes)
    answered = np.bincount(answers, minlength=num_classes)[
        :num_classes
    ]  # without outputs of unknown classes
    return float(np.mean(CLASS_SCORES[metric](right, support, answered)))


def score_table(metric: str, table: "Predictions") -> float:
    """Return a model's score in any metric of a recipe."""
    if METRICS[metric].is_over_classes:
        return score_of(metric, labels=table.labels, outputs=table.outputs)
    return float(np.mean(table.per_row(metric)))


def class_codes(values: Sequence[str], classes: dict[str, int]) -> IntArray:
    """Return the class index of each value; unknown values get the number of classes."""
    codes = map(classes.get, values, repeat(len(classes)))
    return np.fromiter(codes, dtype=np.int64, count=len(values))
