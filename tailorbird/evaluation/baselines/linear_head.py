"""Linear heads on features, with settings that are selected on validation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from tailorbird.config.training import ClassWeights
from tailorbird.evaluation.baselines.linear_solver import (
    Blocks,
    FloatArray,
    IntArray,
    Loss,
    SoftmaxLoss,
    SquaredHingeLoss,
    minimise,
)
from tailorbird.evaluation.class_weights import POWERS, weights_of_classes
from tailorbird.evaluation.offsets import OffsetFit, fit_offsets
from tailorbird.evaluation.statistics.scoring import score_of

# names of the kinds of linear models
LOGISTIC = "logistic regression"
SVM = "linear SVM"


@dataclass(frozen=True)
class Head:
    """The weight [L, F] and bias [L] of a linear head."""

    weight: FloatArray
    bias: FloatArray

    def logits(self, features: FloatArray) -> FloatArray:
        """Return logits [N, L] of features [N, F]."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)

    def to_bytes(self) -> bytes:
        """Return the content of `head.safetensors`."""
        arrays = {"weight": self.weight, "bias": self.bias}
        # safetensors stores raw memory, and a transposed array is column-major.
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return bytes(save(contiguous))


@dataclass(frozen=True)
class Fit:
    """A fitted linear model with its settings, its logits of the validation rows [N, L] and their
    score."""

    weights: tuple[FloatArray, ...]  # [F_k, L] for each block of features
    bias: FloatArray  # [L]
    model: str  # `LOGISTIC` or `SVM`
    c: float
    class_weights: ClassWeights
    logits: FloatArray
    score: float  # of the highest logit, or that of `OffsetFit`
    offsets: tuple[float, ...] = ()  # [L]
    held_out_logits: NDArray[np.float64] | None = (
        None  # see `OffsetFit`; None before offsets are fitted
    )
    embedding_weight: float | None = None  # factor of an embedding next to this bag of words
    mixed: float | None = None  # weight of a probe that is mixed with this bag of words

    def note(self) -> str:
        """Return the settings for reports."""
        settings = f"{self.model}, C = {self.c:g}"
        if self.class_weights != "equal":
            settings += f", {self.class_weights} class weights"
        if self.embedding_weight is not None:
            settings += f", embedding weight {self.embedding_weight:g}"
        if self.mixed is not None:
            return f"bag of words ({settings}), mixed with {self.mixed:.0%} probe"
        return settings


@dataclass(frozen=True)
class HeldOut:
    """The validation rows of linear models: labels [N], the metric, and the document of each
    row."""

    truth: IntArray
    metric: str
    documents: tuple[str, ...] | None = None  # None if each row is a document

    def score(self, logits: FloatArray) -> float:
        """Return the score of the highest logits, from [N, L]."""
        return score_of(self.metric, labels=self.truth, outputs=logits.argmax(1))

    def fit_offsets(self, logits: FloatArray) -> OffsetFit:
        """Return the offsets that suit the metric, from logits [N, L]."""
        return fit_offsets(logits, truth=self.truth, metric=self.metric, documents=self.documents)

    def with_offsets(self, fit: Fit) -> Fit:
        """Return the fit with its offsets and their score."""
        fitted = self.fit_offsets(fit.logits)
        return replace(
            fit,
            offsets=fitted.offsets,
            score=fitted.score,
            held_out_logits=fitted.held_out_logits,
        )


@dataclass(frozen=True)
class HeadData:
    """Blocks of features of the training and validation rows, and the labels of the training
    rows."""

    train: Blocks
    labels: IntArray
    features: Blocks  # of the validation rows
    held_out: HeldOut

    def take(self, rows: IntArray) -> "HeadData":
        """Return the data with a part of the training rows."""
        train = tuple(block[rows] for block in self.train)
        return replace(self, train=train, labels=self.labels[rows])


def fit_linear(
    data: HeadData,
    model: str,
    *,
    strengths: Sequence[float],
    class_weights: ClassWeights = "equal",
    start: Fit | None = None,
) -> Iterator[Fit]:
    """Fit a kind of linear model for each C in ascending order.

    Each fit starts from the previous fit. The first starts from `start`, a fit of the last blocks,
    or from zeros.
    """
    num_classes = int(data.labels.max()) + 1
    weights = weights_of_classes(np.bincount(data.labels), kind=class_weights)[data.labels]
    loss: Loss = SoftmaxLoss(data.labels, weights=weights)
    if model == SVM:
        loss = SquaredHingeLoss(data.labels, weights=weights, num_classes=num_classes)
    parts = [np.zeros((block.shape[1], num_classes), dtype=np.float32) for block in data.train]
    bias = np.zeros((1, num_classes), dtype=np.float32)
    if start is not None:
        parts[-len(start.weights) :] = start.weights
        bias = start.bias[None]

    for c in strengths:
        *parts, bias = minimise(data.train, loss, c=c, start=(*parts, bias))
        logits = bias + sum(block @ part for block, part in zip(data.features, parts, strict=True))
        yield Fit(
            weights=tuple(parts),
            bias=bias[0],
            model=model,
            c=c,
            class_weights=class_weights,
            logits=logits,
            score=data.held_out.score(logits),
        )


def refit(data: HeadData, fit: Fit, *, class_weights: ClassWeights | None = None) -> Fit:
    """Return a fit on other data with the same settings, or with other class weights, that starts
    from `fit`."""
    fits = fit_linear(
        data,
        fit.model,
        strengths=(fit.c,),
        class_weights=class_weights or fit.class_weights,
        start=fit,
    )
    return next(fits)


def best_of(fits: Iterable[Fit]) -> Fit:
    """Return the fit with the best validation score, the first if scores are equal. Keep two fits
    in memory."""
    return max(fits, key=lambda fit: fit.score)


def best_class_weights(data: HeadData, fits: Sequence[Fit]) -> Fit:
    """Return the best fit with offsets, for each kind of class weights.

    `fits` are those of equal weights. Each is fitted again with other weights and the same
    settings.
    """
    best = data.held_out.with_offsets(best_of(fits))
    for class_weights in POWERS:
        if class_weights != "equal":
            weighted = best_of(refit(data, fit, class_weights=class_weights) for fit in fits)
            best = best_of([best, data.held_out.with_offsets(weighted)])
    return best
