"""Interval and p value of a gain in a mean over classes, by the jackknife: what the score changes
without a row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.documents import document_effect, documents_of
from tailorbird.evaluation.statistics.effect import Effect
from tailorbird.evaluation.statistics.scoring import CLASS_SCORES, class_codes

FloatArray = NDArray[np.float64]


def class_metric_effect(
    candidate: Predictions, *, other: Predictions, metric: str, alpha: float
) -> Effect:
    """Return the gain in a mean over classes of two models on the same rows (`predictions.align`).

    The gain is that of the mean of `jackknife_values`, so interval and p value are those of
    `document_effect`: Student's t over rows, or over documents if rows share documents. Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), chapter 11.
    """
    is_different = np.array(
        [first != second for first, second in zip(candidate.outputs, other.outputs, strict=True)]
    )
    return document_effect(
        jackknife_values(candidate, metric=metric) - jackknife_values(other, metric=metric),
        documents=documents_of(candidate.clusters, num_rows=len(candidate)),
        alpha=alpha,
        is_different=is_different,
    )


def jackknife_values(table: Predictions, *, metric: str) -> FloatArray:
    """Return `jackknife_scores` of a model's predictions."""
    return jackknife_scores(metric, labels=table.labels, outputs=table.outputs)


def jackknife_scores(metric: str, *, labels: Sequence[Any], outputs: Sequence[Any]) -> FloatArray:
    """Return a value per row [N] whose mean is the score, and whose spread is that of the score.

    A row differs from the mean by N - 1 times what the score loses if the row is left out, minus
    the mean of this loss over rows. A class whose only row is left out does not count.
    """
    class_score = CLASS_SCORES[metric]
    classes = {label: code for code, label in enumerate(sorted(set(labels)))}
    num_classes = len(classes)
    truth = class_codes(labels, classes)
    answers = class_codes(outputs, classes)
    is_right = truth == answers

    # Outputs of unknown classes are one more class, whose score is 0.
    support = np.bincount(truth, minlength=num_classes + 1)
    answered = np.bincount(answers, minlength=num_classes + 1)
    right = np.bincount(truth[is_right], minlength=num_classes + 1)
    by_class = class_score(right, support, answered)

    label_scores = class_score(
        right[truth] - is_right, support[truth] - 1, answered[truth] - is_right
    )
    output_scores = class_score(right[answers], support[answers], answered[answers] - 1)
    change_of_output = np.where(is_right, 0.0, output_scores - by_class[answers])
    num_left = np.maximum(num_classes - (support[truth] == 1), 1)
    without = (by_class.sum() - by_class[truth] + label_scores + change_of_output) / num_left
    score = by_class.sum() / num_classes
    lost = (len(truth) - 1) * (score - without)
    return np.asarray(score + lost - lost.mean(), dtype=np.float64)
