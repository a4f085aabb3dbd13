"""Tests of the solver for linear heads, compared with scikit-learn."""

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from tailorbird.evaluation.baselines import linear_solver
from tailorbird.evaluation.baselines.linear_solver import (
    Blocks,
    Loss,
    SoftmaxLoss,
    SquaredHingeLoss,
    minimise,
)
from tailorbird.evaluation.class_weights import weights_of_classes

GENERATOR = np.random.default_rng(0)
DENSE = GENERATOR.normal(size=(200, 6)).astype(np.float32)
SPARSE = csr_matrix(np.maximum(GENERATOR.normal(size=(200, 30)) - 1, 0).astype(np.float32))
ALL = np.hstack([DENSE, SPARSE.toarray()])
LABELS = (ALL[:, 0] + ALL[:, 6] + GENERATOR.normal(size=200) > 0).astype(np.int64)
LABELS[:40] = 2
EQUAL = np.ones(200, dtype=np.float32)
BALANCED = weights_of_classes(np.bincount(LABELS), kind="balanced")[LABELS]
SOFTMAX = SoftmaxLoss(LABELS, weights=EQUAL)
BALANCED_SOFTMAX = SoftmaxLoss(LABELS, weights=BALANCED)
HINGE = SquaredHingeLoss(LABELS, weights=EQUAL, num_classes=3)
BALANCED_HINGE = SquaredHingeLoss(LABELS, weights=BALANCED, num_classes=3)


def zeros(blocks: Blocks) -> tuple[np.ndarray, ...]:
    """Return weights and a bias of zeros."""
    widths = [*(block.shape[1] for block in blocks), 1]
    return tuple(np.zeros((width, 3), dtype=np.float32) for width in widths)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_solver, "TOLERANCE", 1e-6)
    monkeypatch.setattr(linear_solver, "MAX_STEPS", 1_000)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("loss", "model", "row_weights"),
    [
        (SOFTMAX, LogisticRegression(tol=1e-6, max_iter=1_000), EQUAL),
        (BALANCED_SOFTMAX, LogisticRegression(tol=1e-6, max_iter=1_000), BALANCED),
        (HINGE, LinearSVC(tol=1e-6, max_iter=100_000, intercept_scaling=100.0), EQUAL),
        (BALANCED_HINGE, LinearSVC(tol=1e-6, max_iter=100_000, intercept_scaling=100.0), BALANCED),
    ],
)
def test_the_weights_are_those_of_scikit_learn(
    loss: Loss, model: Any, row_weights: np.ndarray
) -> None:
    *weights, bias = minimise((DENSE, SPARSE), loss, c=1.0, start=zeros((DENSE, SPARSE)))
    model.fit(ALL, LABELS, sample_weight=row_weights)
    np.testing.assert_allclose(np.vstack(weights).T, model.coef_, atol=0.02)
    if isinstance(model, LogisticRegression):
        centred = model.intercept_ - model.intercept_.mean()
        np.testing.assert_allclose(bias[0] - bias.mean(), centred, atol=0.02)


@pytest.mark.usefixtures("strict")
def test_a_fit_that_continues_another_fit_reaches_the_same_weights() -> None:
    start = zeros((DENSE,))
    cold = minimise((DENSE,), SOFTMAX, c=1.0, start=start)
    assert not start[0].any()
    first = minimise((DENSE,), SOFTMAX, c=0.01, start=start)
    warm = minimise((DENSE,), SOFTMAX, c=1.0, start=first)
    np.testing.assert_allclose(warm[0], cold[0], atol=0.02)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("c", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("loss", [SOFTMAX, HINGE])
def test_a_fit_lowers_the_objective_at_any_scale_and_regularisation(
    scale: float, c: float, loss: Loss
) -> None:
    features = np.float32(scale) * DENSE
    weights, bias = minimise((features,), loss, c=c, start=zeros((features,)))
    scores = np.asarray(features @ weights + bias, dtype=np.float32)
    objective = c * loss.gradient(scores)[0] + float(np.vdot(weights, weights)) / 2
    assert objective < c * loss.gradient(np.zeros_like(scores))[0]
