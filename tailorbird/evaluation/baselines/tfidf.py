"""Baselines without a pretrained model: TF-IDF features with a linear classifier, and the most frequent label."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from tailorbird import storage
from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.predict import label_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.scoring import score_of
from tailorbird.storage.stored_model import StoredModel

FloatArray = NDArray[np.float64]

KIND = "tf_idf"
NOTE = "bag of words, no neural model"
REGULARISATIONS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Values of the linear classifier's C that are tried, strongest regularisation first."""
FEATURES = {"words": ("words",), "characters": ("characters",), "words and characters": ("words", "characters")}
"""Features that are tried; each is a concatenation of kinds of n-grams."""


@dataclass(frozen=True)
class Attempt:
    """A setting and its validation score."""

    features: str
    c: float
    validation_score: float


@dataclass(frozen=True)
class TfidfBaseline:
    """The best TF-IDF classifier on validation: the reference, which is not servable."""

    features: str  # a key of `FEATURES`
    attempts: tuple[Attempt, ...]  # all settings that were tried, in order
    classes: tuple[str, ...]
    vectorizers: Mapping[str, TfidfVectorizer] = field(repr=False)  # vectorizers by kind of n-grams
    weights: FloatArray = field(repr=False)  # [L, D]; for two classes [1, D], the weights of the second class
    intercepts: FloatArray = field(repr=False)  # [L] or [1]

    def predict(self, texts: Sequence[str]) -> tuple[tuple[str, ...], FloatArray]:
        """Return the label of each text and its uncalibrated confidence (softmax of the margins) [N] in (0, 1]."""
        if not texts:
            return (), np.zeros(0)
        matrix = _stack(self.vectorizers[name].transform(list(texts)) for name in FEATURES[self.features])
        margins = _margins(matrix, weights=self.weights, intercepts=self.intercepts)
        best = margins.argmax(axis=1)
        odds = np.exp(margins - margins.max(axis=1, keepdims=True))
        return tuple(self.classes[index] for index in best), odds[np.arange(len(best)), best] / odds.sum(axis=1)

    def predictions(self, rows: Rows) -> Predictions:
        """Return the predictions for rows."""
        outputs, confidences = self.predict(rows.texts)
        return label_predictions(KIND, rows=rows, outputs=outputs, confidences=confidences, calibrated=confidences)


class _StoredTfidf(StoredModel):
    """The part of a `TfidfBaseline` that is stored as JSON."""

    features: str
    attempts: tuple[Attempt, ...]
    classes: tuple[str, ...]
    vocabularies: dict[str, tuple[str, ...]]
    """Terms of each vectorizer, in the order of its columns."""


def fit_tfidf(train: Rows, *, validation: Rows, metric: str = "accuracy", seed: int = 0) -> TfidfBaseline:
    """Fit all `FEATURES` with all `REGULARISATIONS` on train; return the best on validation by the metric.

    The earlier, simpler setting wins a tie. Raises ValueError if train has a single class or no text with a character,
    or if validation is empty.
    """
    if len(set(train.labels)) < 2:
        raise ValueError(f"a classifier needs two classes, but train has {sorted(set(train.labels))}; check data.label")
    if not len(validation):
        raise ValueError("validation has no rows; the reference needs validation rows to select its settings")
    vectorizers, matrices = _fit_vectorizers(train.texts)
    best: TfidfBaseline | None = None
    attempts: list[Attempt] = []
    for features, names in FEATURES.items():
        if not set(names) <= set(vectorizers):
            continue
        used = {name: vectorizers[name] for name in names}
        train_matrix = _stack(matrices[name] for name in names)
        validation_matrix = _stack(vectorizer.transform(list(validation.texts)) for vectorizer in used.values())
        for c in REGULARISATIONS:
            fitted = LinearSVC(C=c, tol=1e-2, random_state=seed).fit(train_matrix, np.asarray(train.labels))
            weights, intercepts = np.ascontiguousarray(fitted.coef_), np.ascontiguousarray(fitted.intercept_)
            margins = _margins(validation_matrix, weights=weights, intercepts=intercepts)
            score = score_of(metric, labels=validation.labels, outputs=fitted.classes_[margins.argmax(axis=1)])
            if all(score > attempt.validation_score for attempt in attempts):
                classes = tuple(str(name) for name in fitted.classes_)
                best = TfidfBaseline(features, (), classes, used, weights, intercepts)
            attempts.append(Attempt(features=features, c=c, validation_score=score))
    if best is None:
        raise ValueError("no training text contains a word or a character; check data.text")
    return replace(best, attempts=tuple(attempts))


def fit_and_predict_tfidf(rows: Rows, *, train: Rows, validation: Rows, metric: str) -> Predictions:
    """Fit a baseline and return its predictions for rows."""
    return fit_tfidf(train, validation=validation, metric=metric).predictions(rows)


def save_tfidf(uri: str, baseline: TfidfBaseline) -> None:
    """Write a fitted baseline as `tfidf.json` and `tfidf.safetensors`, which execute no code when loaded."""
    arrays = {"weights": baseline.weights, "intercepts": baseline.intercepts}
    arrays |= {f"idf.{name}": np.asarray(vectorizer.idf_) for name, vectorizer in baseline.vectorizers.items()}
    terms = {name: tuple(item.get_feature_names_out().tolist()) for name, item in baseline.vectorizers.items()}
    stored = _StoredTfidf(
        features=baseline.features, attempts=baseline.attempts, classes=baseline.classes, vocabularies=terms
    )
    storage.write_bytes(f"{uri}/tfidf.safetensors", save(arrays))
    storage.write_bytes(f"{uri}/tfidf.json", stored.model_dump_json().encode())


def load_tfidf(uri: str) -> TfidfBaseline:
    """Read a baseline that `save_tfidf` wrote; its predictions equal those of the fitted baseline bit for bit."""
    stored = _StoredTfidf.model_validate_json(storage.read_bytes(f"{uri}/tfidf.json"))
    arrays = load(storage.read_bytes(f"{uri}/tfidf.safetensors"))
    vectorizers = {}
    for name, terms in stored.vocabularies.items():
        vectorizers[name] = _vectorizer(name).set_params(vocabulary={term: index for index, term in enumerate(terms)})
        vectorizers[name].idf_ = arrays[f"idf.{name}"]
    weights, intercepts = arrays["weights"], arrays["intercepts"]
    return TfidfBaseline(stored.features, stored.attempts, stored.classes, vectorizers, weights, intercepts)


def predict_tfidf(uri: str, *, rows: Rows) -> Predictions:
    """Return the predictions of the baseline at `uri` for rows."""
    return load_tfidf(uri).predictions(rows)


def majority(train_labels: Sequence[str]) -> tuple[str, float]:
    """Return the most frequent training label and its share; the first in the alphabet wins a tie."""
    if not train_labels:
        raise ValueError("there are no training labels; give a training split with rows")
    counts = Counter(train_labels)
    label = min(counts, key=lambda name: (-counts[name], name))
    return label, counts[label] / len(train_labels)


def _vectorizer(name: str) -> TfidfVectorizer:
    if name == "words":
        return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)


def _fit_vectorizers(texts: Sequence[str]) -> tuple[dict[str, TfidfVectorizer], dict[str, csr_matrix]]:
    """Return the vectorizers of words and characters and the features of the texts; omit vectorizers without terms."""
    vectorizers, matrices = {}, {}
    for name in FEATURES["words and characters"]:
        vectorizer = _vectorizer(name)
        try:
            matrices[name] = vectorizer.fit_transform(list(texts))
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            continue  # texts with only punctuation contain characters but no words
        vectorizers[name] = vectorizer
    return vectorizers, matrices


def _stack(matrices: Iterable[csr_matrix]) -> csr_matrix:
    return hstack(list(matrices)).tocsr()


def _margins(matrix: csr_matrix, *, weights: FloatArray, intercepts: FloatArray) -> FloatArray:
    """Return [N, L] margins."""
    margins = np.asarray(matrix @ weights.T + intercepts, dtype=np.float64)
    return margins if len(weights) > 1 else np.concatenate([-margins, margins], axis=1)  # two classes have one margin
