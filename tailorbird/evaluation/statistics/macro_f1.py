"""Interval and p value of a gain in macro-F1, by the jackknife: what the score changes if a row is left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.documents import document_effect, documents_of
from tailorbird.evaluation.statistics.effect import Effect
from tailorbird.evaluation.statistics.scoring import class_codes

FloatArray = NDArray[np.float64]


def macro_f1_effect(candidate: Predictions, *, other: Predictions, alpha: float) -> Effect:
    """Return the gain in macro-F1 of two models on the same rows (`predictions.align`).

    The gain is that of the mean of `jackknife_values`, so interval and p value are those of `document_effect`:
    Student's t over rows, or over documents if rows share documents. Efron and Tibshirani, An Introduction to the
    Bootstrap (1993), chapter 11.
    """
    is_different = np.array([ours != theirs for ours, theirs in zip(candidate.outputs, other.outputs, strict=True)])
    return document_effect(
        jackknife_values(candidate) - jackknife_values(other),
        documents=documents_of(candidate.clusters, num_rows=len(candidate)),
        alpha=alpha,
        is_different=is_different,
    )


def jackknife_values(table: Predictions) -> FloatArray:
    """Return `jackknife_scores` of a model's predictions."""
    return jackknife_scores(table.labels, outputs=table.outputs)


def jackknife_scores(labels: Sequence[Any], *, outputs: Sequence[Any]) -> FloatArray:
    """Return a score per row [N] whose mean is macro-F1, and whose spread is that of macro-F1.

    A row differs from the mean by N - 1 times the macro-F1 that is lost if the row is left out, minus the mean of this
    loss over rows. A class whose only row is left out is not part of macro-F1.
    """
    classes = {label: code for code, label in enumerate(sorted(set(labels)))}
    num_classes = len(classes)
    truth = class_codes(labels, classes)
    answers = class_codes(outputs, classes)
    is_right = truth == answers

    support = np.bincount(truth, minlength=num_classes + 1)
    sizes = support + np.bincount(answers, minlength=num_classes + 1)
    right = np.bincount(truth[is_right], minlength=num_classes + 1)
    f1 = 2 * right / np.maximum(sizes, 1)  # 0 for outputs of unknown classes

    is_only = support[truth] == 1
    of_label = 2 * (right[truth] - is_right) / np.maximum(sizes[truth] - 1 - is_right, 1)
    of_output = np.where(is_right, 0.0, 2 * right[answers] / np.maximum(sizes[answers] - 1, 1) - f1[answers])
    without = (f1.sum() - f1[truth] + of_label + of_output) / np.maximum(num_classes - is_only, 1)
    score = f1.sum() / num_classes
    lost = (len(truth) - 1) * (score - without)
    return np.asarray(score + lost - lost.mean(), dtype=np.float64)
