"""Tests of the solver for linear heads, compared with scikit-learn."""

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
NUM_CLASSES = 3
DENSE = GENERATOR.normal(size=(200, 6)).astype(np.float32)
SPARSE = csr_matrix(np.maximum(GENERATOR.normal(size=(200, 30)) - 1, 0).astype(np.float32))
LABELS = (DENSE[:, 0] + SPARSE[:, 0].toarray()[:, 0] + GENERATOR.normal(size=200) > 0).astype(
    np.int64
)
LABELS[:40] = 2
EQUAL = np.ones(200, dtype=np.float32)
BALANCED = weights_of_classes(np.bincount(LABELS), kind="balanced")[LABELS]
ALL = np.hstack([DENSE, SPARSE.toarray()])


def zeros(blocks: Blocks) -> tuple[np.ndarray, ...]:
    """Return weights and a bias of zeros."""
    widths = [*(block.shape[1] for block in blocks), 1]
    return tuple(np.zeros((width, NUM_CLASSES), dtype=np.float32) for width in widths)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_solver, "TOLERANCE", 1e-6)
    monkeypatch.setattr(linear_solver, "MAX_STEPS", 1_000)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("row_weights", [EQUAL, BALANCED])
def test_logistic_regression_has_the_weights_of_scikit_learn(row_weights: np.ndarray) -> None:
    loss = SoftmaxLoss(LABELS, weights=row_weights)
    *weights, bias = minimise((DENSE, SPARSE), loss, c=1.0, start=zeros((DENSE, SPARSE)))
    expected = LogisticRegression(C=1.0, tol=1e-6, max_iter=1_000).fit(
        ALL, LABELS, sample_weight=row_weights
    )
    np.testing.assert_allclose(np.vstack(weights).T, expected.coef_, atol=0.02)
    centred = expected.intercept_ - expected.intercept_.mean()
    np.testing.assert_allclose(bias[0] - bias.mean(), centred, atol=0.02)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("row_weights", [EQUAL, BALANCED])
def test_a_linear_svm_has_the_weights_of_scikit_learn(row_weights: np.ndarray) -> None:
    loss = SquaredHingeLoss(LABELS, weights=row_weights, num_classes=NUM_CLASSES)
    *weights, _ = minimise((DENSE, SPARSE), loss, c=1.0, start=zeros((DENSE, SPARSE)))
    svm = LinearSVC(C=1.0, tol=1e-6, max_iter=100_000, intercept_scaling=100.0)
    expected = svm.fit(ALL, LABELS, sample_weight=row_weights)
    np.testing.assert_allclose(np.vstack(weights).T, expected.coef_, atol=0.02)


@pytest.mark.parametrize(
    "loss",
    [
        SoftmaxLoss(LABELS, weights=BALANCED),
        SquaredHingeLoss(LABELS, weights=BALANCED, num_classes=NUM_CLASSES),
    ],
)
def test_gradients_and_slopes_equal_finite_differences(loss: Loss) -> None:
    scores, direction = (
        GENERATOR.normal(size=(200, NUM_CLASSES)).astype(np.float32) for _ in range(2)
    )
    step = np.float32(0.01)
    low, middle, high = (
        loss.gradient(scores + factor * step * direction)[0] for factor in (-1, 0, 1)
    )
    first, second = loss.slope(scores, direction)
    assert first == pytest.approx((high - low) / (2 * step), rel=0.02, abs=0.5)
    assert first == pytest.approx(
        float(np.vdot(loss.gradient(scores)[1], direction)), rel=1e-3, abs=0.01
    )
    assert second == pytest.approx((high - 2 * middle + low) / step**2, rel=0.2)


@pytest.mark.usefixtures("strict")
def test_a_fit_that_continues_another_fit_reaches_the_same_weights() -> None:
    loss = SoftmaxLoss(LABELS, weights=EQUAL)
    cold = minimise((DENSE,), loss, c=1.0, start=zeros((DENSE,)))
    warm = minimise(
        (DENSE,), loss, c=1.0, start=minimise((DENSE,), loss, c=0.01, start=zeros((DENSE,)))
    )
    np.testing.assert_allclose(warm[0], cold[0], atol=0.02)


def test_a_fit_does_not_change_its_start() -> None:
    start = zeros((DENSE,))
    minimise((DENSE,), SoftmaxLoss(LABELS, weights=EQUAL), c=1.0, start=start)
    assert not start[0].any()


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("c", [0.01, 1.0, 300.0])
def test_a_fit_lowers_the_objective_at_any_scale_and_regularisation(scale: float, c: float) -> None:
    features = (scale * DENSE).astype(np.float32)
    for loss in (
        SoftmaxLoss(LABELS, weights=EQUAL),
        SquaredHingeLoss(LABELS, weights=EQUAL, num_classes=NUM_CLASSES),
    ):
        weights, bias = minimise((features,), loss, c=c, start=zeros((features,)))
        scores = np.asarray(features @ weights + bias, dtype=np.float32)
        objective = c * loss.gradient(scores)[0] + float(np.vdot(weights, weights)) / 2
        assert objective < c * loss.gradient(np.zeros_like(scores))[0]
