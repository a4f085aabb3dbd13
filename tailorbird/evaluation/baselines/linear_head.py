"""Linear heads on features, with settings that are selected on validation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.evaluation.baselines.linear_solver import (
    Blocks,
    FloatArray,
    IntArray,
    SoftmaxLoss,
    SquaredHingeLoss,
    minimise,
)
from tailorbird.evaluation.statistics.scoring import score_of

LOGISTIC, SVM = "logistic regression", "linear SVM"  # names of the kinds of linear models


@dataclass(frozen=True)
class Head:
    """The weight [L, F] and bias [L] of a linear head."""

    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):  # safetensors stores raw memory, and a transposed array is column-major
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))

    def logits(self, features: FloatArray) -> FloatArray:
        """Return logits [N, L] of features [N, F]."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)


@dataclass(frozen=True)
class Fit:
    """A fitted linear model with its settings, its logits of the validation rows [N, L] and their score."""

    weights: tuple[FloatArray, ...]  # [F_k, L] for each block of features
    bias: FloatArray  # [L]
    model: str  # `LOGISTIC` or `SVM`
    c: float
    embedding_weight: float
    logits: FloatArray
    score: float

    def note(self) -> str:
        """Return the settings for reports."""
        embedding = f", embedding weight {self.embedding_weight:g}" if self.embedding_weight else ""
        return f"{self.model}, C = {self.c:g}{embedding}"


@dataclass(frozen=True)
class HeadData:
    """Blocks of features, and the labels of the training and validation rows."""

    train: Blocks
    labels: IntArray
    held_out: Blocks
    truth: IntArray
    metric: str
    embedding_weight: float = 0.0  # factor of the embedding; 0 without one, or if it is the only block


def fit_linear(data: HeadData, model: str, *, strengths: Sequence[float], start: Fit | None = None) -> Iterator[Fit]:
    """Fit a kind of linear model for each C in ascending order.

    Each fit starts from the previous fit. The first starts from `start`, a fit of the last blocks, or from zeros.
    """
    num_classes = int(data.labels.max()) + 1
    loss = SoftmaxLoss(data.labels) if model == LOGISTIC else SquaredHingeLoss(data.labels, num_classes=num_classes)
    parts = [np.zeros((block.shape[1], num_classes), dtype=np.float32) for block in data.train]
    bias = np.zeros((1, num_classes), dtype=np.float32)
    if start is not None:
        parts[-len(start.weights) :] = start.weights
        bias = start.bias[None]
        if len(start.weights) == len(parts) and start.embedding_weight:  # the same logits with another factor
            parts[0] = parts[0] * np.float32(start.embedding_weight / data.embedding_weight)
    for c in strengths:
        *parts, bias = minimise(data.train, loss, c=c, start=(*parts, bias))
        logits = bias + sum(block @ part for block, part in zip(data.held_out, parts, strict=True))
        score = score_of(data.metric, labels=data.truth, outputs=logits.argmax(1))
        yield Fit(tuple(parts), bias[0], model, c, data.embedding_weight, logits, score)


def best_of(fits: Iterable[Fit]) -> Fit:
    """Return the fit with the best validation score, the first if scores are equal. Keep two fits in memory."""
    return max(fits, key=lambda fit: fit.score)
