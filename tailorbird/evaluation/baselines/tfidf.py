"""Beside the ladder of pretrained rungs: what needs no pretraining, bags of words or characters and the majority."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion
from sklearn.svm import LinearSVC

from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.predict import predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.scoring import score_of

REGULARISATIONS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Values of the linear classifier's C that are tried, the most regularised first."""


@dataclass(frozen=True)
class Attempt:
    """One candidate and its score on validation."""

    features: str
    c: float
    validation_score: float


@dataclass(frozen=True)
class Reference:
    """The TF-IDF + linear classifier that did best on validation; it cannot be served, but must be beaten."""

    features: str
    """`words`, `characters` or `words and characters`."""
    c: float
    validation_score: float
    attempts: tuple[Attempt, ...]
    """Every candidate tried, in order: the reference's own validation budget."""
    vectoriser: Any = field(repr=False)
    classifier: LinearSVC = field(repr=False)

    def predict(self, texts: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
        """(label, confidence) of each text; confidence is float64 [N] in (0, 1].

        Confidence is the softmax of the margins at the label: it orders the answers, and is no probability before a
        temperature is fitted to it.
        """
        if not texts:
            return (), np.zeros(0)
        margins = _margins(self.classifier, self.vectoriser.transform(list(texts)))
        best = margins.argmax(axis=1)
        odds = np.exp(margins - margins.max(axis=1, keepdims=True))
        labels = tuple(str(self.classifier.classes_[index]) for index in best)
        return labels, odds[np.arange(len(best)), best] / odds.sum(axis=1)


def fit_reference(
    train_texts: Sequence[str],
    train_labels: Sequence[str],
    *,
    validation_texts: Sequence[str],
    validation_labels: Sequence[str],
    metric: str = "accuracy",
    seed: int = 0,
) -> Reference:
    """Fits words, characters and both, each at every C, on train and keeps the best on validation, by the metric.

    Of equals the earlier, the simpler, is kept. Raises ValueError when train has one class only or no text has a
    character to count, or validation is empty.
    """
    if len(set(train_labels)) < 2:
        raise ValueError(f"a classifier needs two classes; train has {sorted(set(train_labels))}: check data.label")
    if not validation_texts:
        raise ValueError("the reference is chosen on validation, which has no rows; give some")
    best: Reference | None = None
    attempts: list[Attempt] = []
    for name, make in _FEATURES.items():
        vectoriser = make()
        try:
            train = vectoriser.fit_transform(list(train_texts))
        except ValueError as error:
            if "empty vocabulary" in str(error):
                continue  # texts of signs only have no words, but have characters
            raise
        validation = vectoriser.transform(list(validation_texts))
        for c in REGULARISATIONS:
            classifier = LinearSVC(C=c, tol=1e-2, random_state=seed).fit(train, np.asarray(train_labels))
            answers = classifier.classes_[_margins(classifier, validation).argmax(axis=1)]
            score = score_of(metric, labels=validation_labels, outputs=answers)
            attempts.append(Attempt(features=name, c=c, validation_score=score))
            if best is None or score > best.validation_score:
                best = Reference(name, c, score, (), vectoriser, classifier)
    if best is None:
        raise ValueError("no training text has a word or a character to count; check data.text")
    return Reference(best.features, best.c, best.validation_score, tuple(attempts), best.vectoriser, best.classifier)


def majority(train_labels: Sequence[str]) -> tuple[str, float]:
    """(label, share): the most frequent training label, the first in the alphabet among equals, and its share."""
    if not train_labels:
        raise ValueError("there are no training labels to count; give a training split with rows")
    counts = Counter(train_labels)
    label = min(counts, key=lambda name: (-counts[name], name))
    return label, counts[label] / len(train_labels)


def _margins(classifier: LinearSVC, features: Any) -> np.ndarray:
    margins = np.asarray(classifier.decision_function(features), dtype=np.float64)
    return margins if margins.ndim == 2 else np.stack([-margins, margins], axis=1)  # two classes share one margin


def _words() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")


def _characters() -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)


def _both() -> FeatureUnion:
    return FeatureUnion([("words", _words()), ("characters", _characters())])


_FEATURES: dict[str, Callable[[], Any]] = {
    "words": _words,
    "characters": _characters,
    "words and characters": _both,
}


def predict_reference(rows: Rows, *, train: Rows, validation: Rows, metric: str) -> Predictions:
    """What the TF-IDF reference, fitted again on the training rows, answers."""
    reference = fit_reference(
        train.texts,
        train.labels,
        validation_texts=validation.texts,
        validation_labels=validation.labels,
        metric=metric,
    )
    outputs, confidences = reference.predict(rows.texts)
    confidences = np.asarray(confidences)
    return predictions("tf_idf", rows=rows, outputs=tuple(outputs), confidences=confidences, calibrated=confidences)
