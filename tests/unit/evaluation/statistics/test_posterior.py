"""Tests of the posterior of a gain."""

import numpy as np
import pytest
from scipy.stats import norm

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.posterior import posterior_of


def answers(right: np.ndarray, *, clusters: tuple[str, ...] | None = None) -> Predictions:
    """Return predictions for alternating labels."""
    labels = tuple("ab"[row % 2] for row in range(len(right)))
    outputs = tuple(label if hit else "ba"["ab".index(label)] for label, hit in zip(labels, right, strict=True))
    ids, sure = tuple(map(str, range(len(right)))), np.full(len(right), 0.5)
    return Predictions("a model", ids, labels, outputs, right.astype(np.float64), sure, sure, clusters=clusters)


def rows(num_rows: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared = generator.random(num_rows)
    return shared < 0.74, np.where(generator.random(num_rows) < 0.8, shared, generator.random(num_rows)) < 0.70


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_posterior_of_many_rows_is_that_of_a_normal_gain(metric: str) -> None:
    ours, theirs = rows(3_000)
    posterior = posterior_of(answers(ours), other=answers(theirs), metric=metric, minimum_gain=0.03)
    change = ours.astype(float) - theirs
    expected = norm.sf((0.03 - change.mean()) / (change.std() / np.sqrt(len(change))))
    assert posterior.above_minimum == pytest.approx(expected, abs=0.06)
    assert posterior.loss_if_kept == pytest.approx(change.mean(), abs=0.002)
    assert posterior.loss_if_replaced < 0.001


def test_swapped_models_swap_the_losses() -> None:
    ours, theirs = rows(200)
    first = posterior_of(answers(ours), other=answers(theirs), metric="accuracy", minimum_gain=0.0)
    second = posterior_of(answers(theirs), other=answers(ours), metric="accuracy", minimum_gain=0.0)
    assert first.loss_if_kept == pytest.approx(second.loss_if_replaced, abs=0.003)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_rows_of_one_document_count_as_one_unit(metric: str) -> None:
    ours, theirs = rows(60)
    documents = tuple(str(row) for row in range(60) for _ in range(20))
    tables = (answers(np.repeat(side, 20), clusters=documents) for side in (ours, theirs))
    clustered = posterior_of(next(tables), other=next(tables), metric=metric, minimum_gain=0.05)
    single = posterior_of(answers(ours), other=answers(theirs), metric=metric, minimum_gain=0.05)
    assert clustered.above_minimum == pytest.approx(single.above_minimum, abs=0.1)
