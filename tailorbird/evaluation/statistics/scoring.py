"""Score a model by the recipe's metric; imports little, because every training worker imports this module."""

from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tailorbird.evaluation.predictions import Predictions

IntArray = NDArray[np.int64]

HIGHEST_SCORE = 1.0
"""The highest score in every metric of a recipe."""


def score_of(metric: str, *, labels: Sequence[Any] | NDArray[Any], outputs: Sequence[Any] | NDArray[Any]) -> float:
    """Return the `accuracy` or `macro_f1` of a model; labels and outputs are [N]."""
    if metric == "macro_f1":
        return macro_f1(list(labels), outputs=list(outputs))
    return float(np.mean([label == output for label, output in zip(labels, outputs, strict=True)]))


def score_table(metric: str, table: "Predictions") -> float:
    """Return a model's score in any metric of a recipe."""
    if metric == "macro_f1":
        return macro_f1(table.labels, outputs=table.outputs)
    return float(np.mean(table.per_row(metric)))


def macro_f1(labels: Sequence[str], *, outputs: Sequence[str]) -> float:
    """Return the mean F1 over the classes that occur in the labels; labels and outputs are [N].

    Equals scikit-learn's `f1_score(labels, outputs, labels=sorted(set(labels)), average="macro", zero_division=0)`.
    """
    if not len(labels):
        raise ValueError("labels are empty; macro-F1 needs at least one row")
    classes = {label: code for code, label in enumerate(sorted(set(labels)))}
    truth = class_codes(labels, classes)
    answers = class_codes(outputs, classes)
    num_classes = len(classes)
    support = np.bincount(truth)
    right = np.bincount(truth[truth == answers], minlength=num_classes)
    answered = np.bincount(answers, minlength=num_classes)[:num_classes]  # without outputs of unknown classes
    return float(np.mean(2 * right / (support + answered)))


def class_codes(values: Sequence[str], classes: dict[str, int]) -> IntArray:
    """Return the class index of each value; unknown values get the number of classes."""
    codes = map(classes.get, values, repeat(len(classes)))
    return np.fromiter(codes, dtype=np.int64, count=len(values))
