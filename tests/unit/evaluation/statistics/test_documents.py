"""Tests that rows of the same document count as a single unit in every metric, gate and power
analysis."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.documents import document_effect, documents_of
from tailorbird.evaluation.statistics.effect import unseen_rate
from tailorbird.evaluation.statistics.paired import Comparison, compare
from tests import build


def table(right: np.ndarray, *, documents: np.ndarray | None) -> Predictions:
    """Return predictions that are right on the given rows [N]; a wrong answer is the next class."""
    labels = np.random.default_rng(0).integers(0, 4, len(right))
    outputs = np.where(right, labels, (labels + 1) % 4)
    clusters = None if documents is None else tuple(map(str, documents))
    return build.predictions(
        [*map(str, outputs)], [*map(str, labels)], confidences=1.0, clusters=clusters
    )


def equal_models(seed: int, *, documents: np.ndarray) -> tuple[Predictions, Predictions]:
    """Return two models with an expected accuracy of 0.7, whose correctness is correlated within
    documents."""
    generator = np.random.default_rng(seed)

    tables = []
    for _ in range(2):
        shared = generator.random(documents.max() + 1)[documents]
        alone = generator.random(len(documents))
        luck = np.where(generator.random(len(documents)) < 0.5, shared, alone)
        tables.append(table(luck < 0.7, documents=documents))
    return tables[0], tables[1]


def is_proven(comparison: Comparison) -> bool:
    return comparison.p_value < 0.05 and comparison.interval[0] > 0


def cr2_by_matrices(differences: np.ndarray, *, documents: np.ndarray) -> tuple[float, float]:
    """Return CR2's standard error of the mean and Satterthwaite's degrees of freedom by their
    definitions."""
    n = len(differences)
    residual_maker = np.eye(n) - 1 / n
    residuals = residual_maker @ differences
    rows = []
    contributions = []
    for document in np.unique(documents):
        members = np.flatnonzero(documents == document)
        values, vectors = np.linalg.eigh(np.eye(len(members)) - 1 / n)
        weights = ((vectors * values**-0.5) @ vectors.T).sum(0)
        rows.append(weights @ residual_maker[members] / n)
        contributions.append(weights @ residuals[members] / n)
    gram = np.stack(rows) @ np.stack(rows).T
    error = np.sqrt(np.sum(np.square(contributions)))
    return float(error), float(np.trace(gram) ** 2 / np.sum(gram**2))


@pytest.mark.parametrize("sizes", [(4,) * 8, (1, 1, 2, 3, 5, 8, 13), (1, 1, 1, 1, 1, 30)])
def test_the_closed_form_equals_cr2_and_satterthwaite_by_their_definitions(
    sizes: tuple[int, ...],
) -> None:
    documents = np.repeat(np.arange(len(sizes)), sizes)
    differences = np.random.default_rng(2).choice([-1.0, 0.0, 0.0, 1.0], len(documents))
    grouped = documents_of([*map(str, documents)], num_rows=len(documents))
    effect = document_effect(differences, documents=grouped, alpha=0.05)
    error, freedom = cr2_by_matrices(differences, documents=documents)
    assert effect.gain == pytest.approx(differences.mean())
    assert effect.standard_error == pytest.approx(error)
    assert effect.degrees_of_freedom == pytest.approx(freedom)
    assert effect.p_value == pytest.approx(2 * stats.t.sf(abs(effect.gain) / error, freedom))


def test_documents_that_gain_exactly_the_same_are_no_proof_beyond_their_number() -> None:
    for num in (6, 10, 30, 2000):
        documents = documents_of([str(row // 10) for row in range(10 * num)], num_rows=10 * num)
        effect = document_effect(np.tile([1.0] + [0.0] * 9, num), documents=documents, alpha=0.05)
        assert effect.p_value == pytest.approx(max(2.0 ** (1 - num), 2e-300), rel=0.01)
        assert 0 < effect.interval[0] < effect.gain < effect.interval[1]


def test_few_documents_that_differ_prove_nothing() -> None:
    documents = documents_of([str(row) for row in range(40)], num_rows=40)
    five = document_effect(np.array([1.0] * 5 + [0.0] * 35), documents=documents, alpha=0.05)
    assert (five.p_value, five.interval[0]) == (0.0625, 0.0)
    six = document_effect(np.array([1.0] * 6 + [0.0] * 34), documents=documents, alpha=0.05)
    assert six.p_value == pytest.approx(2**-5)
    assert six.interval[0] > 0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_identical_answers_have_the_interval_of_an_unseen_event(metric: str) -> None:
    same = table(np.ones(60, bool), documents=np.repeat(np.arange(20), 3))
    result = compare(same, other=same, metric=metric, alpha=0.05)
    reach = unseen_rate(20, alpha=0.05)
    assert result.interval == pytest.approx((-reach, reach))
    assert result.p_value == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "num_pairs", "at_least"), [("accuracy", 100, 6), ("macro_f1", 30, 4)]
)
def test_equal_models_are_significant_at_most_at_alpha_if_rows_share_documents(
    metric: str, num_pairs: int, at_least: int
) -> None:
    documents = np.repeat(np.arange(50), 10)
    num_by_rows = 0
    num_by_documents = 0
    for seed in range(num_pairs):
        first, second = equal_models(seed, documents=documents)
        by_rows = compare(replace(first, clusters=None), other=second, metric=metric, alpha=0.05)
        effect = compare(first, other=second, metric=metric, alpha=0.05)
        assert (effect.p_value < 0.05) == (effect.interval[0] > 0 or effect.interval[1] < 0)
        num_by_rows += is_proven(by_rows)
        num_by_documents += is_proven(effect)
    assert num_by_rows >= at_least  # one-sided; 2.5 % are expected at alpha
    assert num_by_documents <= 4
