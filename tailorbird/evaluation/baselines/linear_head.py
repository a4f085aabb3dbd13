"""Linear heads on features, with settings that are selected on validation."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from tailorbird.evaluation.statistics.paired import mcnemar_midp, paired_counts
from tailorbird.evaluation.statistics.scoring import score_of

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Features: TypeAlias = FloatArray | csr_matrix  # [N, F]

SIGNIFICANCE = 0.05  # level of the test that selects an SVM instead of logistic regression
LOGISTIC_TOLERANCE, MAX_ITERATIONS = 1e-3, 100
SVM_TOLERANCE = 1e-1
"""Tolerances of the solvers; stricter ones change the validation score by less than its standard error."""
MAX_LOGISTIC_PARAMETERS = 10_000_000
"""Limit of the weights and biases of logistic regression on a bag of words, about 2.7 GB. L-BFGS stores ten pairs of
vectors: a fit takes 270 B per parameter, and a linear SVM 16 B (measured with 5 and 20 million parameters)."""
LOGISTIC, SVM = "logistic regression", "linear SVM"  # names of the kinds of linear models


@dataclass(frozen=True)
class Head:
    """The weight [L, F] and bias [L] of a linear head."""

    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):  # safetensors stores raw memory, but scikit-learn's arrays are column-major
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))

    def logits(self, features: Features) -> FloatArray:
        """Return logits [N, L] of features [N, F]."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)

    def score(self, features: Features, labels: IntArray, *, metric: str) -> float:
        return score_of(metric, labels=labels, outputs=self.logits(features).argmax(1))


@dataclass(frozen=True)
class Fit:
    """A fitted head with its settings, its answers to the validation rows and their score."""

    head: Head
    model: str  # `LOGISTIC` or `SVM`
    c: float
    embedding_weight: float
    outputs: IntArray
    score: float

    def note(self) -> str:
        """Return the settings for reports."""
        embedding = f", embedding x {self.embedding_weight:g}" if self.embedding_weight else ""
        return f"{self.model}, C = {self.c:g}{embedding}"


@dataclass(frozen=True)
class HeadData:
    """Features and labels of the training and validation rows."""

    train: Features
    labels: IntArray
    held_out: Features
    truth: IntArray
    metric: str
    embedding_weight: float = 0.0  # factor of the embedding among the features, if there are others

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases of a head."""
        return (int(self.labels.max()) + 1) * (int(self.train.shape[1]) + 1)


def fit_logistic(data: HeadData, *, strengths: Sequence[float]) -> Iterator[Fit]:
    """Fit multinomial logistic regression for each C in ascending order; each fit starts from the one before."""
    model = LogisticRegression(tol=LOGISTIC_TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
    for c in strengths:
        yield _fit(model.set_params(C=c), data, c=c, name=LOGISTIC)


def fit_svm(data: HeadData, *, strengths: Sequence[float]) -> Iterator[Fit]:
    """Fit a linear support vector machine, one class against the others, for each C."""
    model = LinearSVC(tol=SVM_TOLERANCE, random_state=0)
    for c in strengths:
        yield _fit(model.set_params(C=c), data, c=c, name=SVM)


def fit_linear(data: HeadData, *, strengths: Mapping[str, Sequence[float]]) -> Iterator[Fit]:
    """Fit the kinds of linear models that have values of C; no logistic regression above `MAX_LOGISTIC_PARAMETERS`."""
    if data.num_parameters <= MAX_LOGISTIC_PARAMETERS:
        yield from fit_logistic(data, strengths=strengths.get(LOGISTIC, ()))
    yield from fit_svm(data, strengths=strengths.get(SVM, ()))


def best_of(fits: Iterable[Fit]) -> Fit:
    """Return the fit with the best validation score; the first of equal scores wins."""
    return max(fits, key=lambda fit: fit.score)


def best_by_model(fits: Iterable[Fit]) -> dict[str, Fit]:
    """Return `best_of` for each kind of linear model. Keeps only the best fits in memory."""
    best: dict[str, Fit] = {}
    for fit in fits:
        best[fit.model] = best_of([best.get(fit.model, fit), fit])
    return best


def select_fit(logistic: Fit | None, *, svm: Fit, truth: IntArray) -> Fit:
    """Return the logistic regression, if any, unless the SVM is better on validation by more than chance.

    The SVM must score higher and answer more rows correctly, with a McNemar mid-p value below `SIGNIFICANCE`.
    """
    if logistic is None:
        return svm
    right = [(fit.outputs == truth).astype(np.float64) for fit in (svm, logistic)]
    counts = paired_counts(right[0], other=right[1])
    is_better = svm.score > logistic.score and counts.gain > 0 and mcnemar_midp(counts) < SIGNIFICANCE
    return svm if is_better else logistic


def _fit(model: LogisticRegression | LinearSVC, data: HeadData, *, c: float, name: str) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # validation selects among the fits as they are
        model.fit(data.train, data.labels)
    weight, bias = model.coef_, np.atleast_1d(model.intercept_)
    if len(bias) == 1:  # scikit-learn has a single row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    head = Head(weight, bias)
    outputs = head.logits(data.held_out).argmax(1)
    score = score_of(data.metric, labels=data.truth, outputs=outputs)
    return Fit(head, name, c, data.embedding_weight, outputs, score)
