"""Tests that rows of the same document count as a single unit in every metric, gate and power
analysis."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.inference.row_predictions import label_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.documents import document_effect, documents_of
from tailorbird.evaluation.statistics.effect import unseen_rate
from tailorbird.evaluation.statistics.paired import Comparison, compare
from tailorbird.evaluation.statistics.power import smallest_detectable

LABELS = ("a", "b", "c", "d")


def table(right: np.ndarray, *, documents: np.ndarray | None, seed: int = 0) -> Predictions:
    """Return predictions that are right on the given rows [N]; a wrong answer is the next class."""
    labels = np.random.default_rng(seed).integers(0, len(LABELS), len(right))
    outputs = np.where(right, labels, (labels + 1) % len(LABELS))
    ones = np.ones(len(right))
    return Predictions(
        model="full",
        row_ids=tuple(str(row) for row in range(len(right))),
        labels=tuple(LABELS[label] for label in labels),
        outputs=tuple(LABELS[output] for output in outputs),
        scores=right.astype(np.float64),
        confidences=ones,
        calibrated=ones,
        groups={"sex": tuple("f" if row % 2 else "m" for row in range(len(right)))},
        clusters=None if documents is None else tuple(str(document) for document in documents),
    )


def equal_models(seed: int, *, documents: np.ndarray) -> tuple[Predictions, Predictions]:
    """Return two models with an expected accuracy of 0.7, whose correctness is correlated within
    documents."""
    generator = np.random.default_rng(seed)

    def right() -> np.ndarray:
        of_document = generator.random(documents.max() + 1)[documents]
        alone = generator.random(len(documents))
        return np.where(generator.random(len(documents)) < 0.5, of_document, alone) < 0.7

    return table(right(), documents=documents), table(right(), documents=documents)


def proven(comparison: Comparison) -> bool:
    return comparison.p_value < 0.05 and comparison.interval[0] > 0


def cr2_by_matrices(differences: np.ndarray, *, documents: np.ndarray) -> tuple[float, float]:
    """Return CR2's standard error of the mean and Satterthwaite's degrees of freedom by their
    definitions."""
    n = len(differences)
    members = [np.flatnonzero(documents == document) for document in np.unique(documents)]
    residual_maker = np.eye(n) - 1 / n
    residuals = residual_maker @ differences
    rows, contributions = [], []
    for rows_of in members:
        values, vectors = np.linalg.eigh(np.eye(len(rows_of)) - 1 / n)
        adjusted = (vectors * values**-0.5) @ vectors.T
        rows.append(np.ones(len(rows_of)) @ adjusted @ residual_maker[rows_of] / n)
        contributions.append(float(np.ones(len(rows_of)) @ adjusted @ residuals[rows_of] / n))
    gram = np.stack(rows) @ np.stack(rows).T
    return float(np.sqrt(np.sum(np.square(contributions)))), float(
        np.trace(gram) ** 2 / np.sum(gram**2)
    )


@pytest.mark.parametrize("sizes", [(4,) * 8, (1, 1, 2, 3, 5, 8, 13), (1, 1, 1, 1, 1, 30)])
def test_the_closed_form_equals_cr2_and_satterthwaite_by_their_definitions(
    sizes: tuple[int, ...],
) -> None:
    documents = np.repeat(np.arange(len(sizes)), sizes)
    differences = np.random.default_rng(2).choice([-1.0, 0.0, 0.0, 1.0], len(documents))
    names = [str(document) for document in documents]
    effect = document_effect(
        differences, documents=documents_of(names, num_rows=len(names)), alpha=0.05
    )
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


def test_documents_of_one_row_each_give_the_plain_t_test() -> None:
    differences = np.random.default_rng(3).random(40) - 0.4
    effect = document_effect(differences, documents=documents_of(None, num_rows=40), alpha=0.05)
    plain = stats.ttest_1samp(differences, 0.0)
    assert effect.p_value == pytest.approx(plain.pvalue)
    assert effect.interval == pytest.approx(tuple(plain.confidence_interval(0.95)))


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
    pairs = [equal_models(seed, documents=documents) for seed in range(num_pairs)]
    by_rows = [
        compare(replace(ours, clusters=None), other=theirs, metric=metric, alpha=0.05)
        for ours, theirs in pairs
    ]
    by_documents = [
        compare(ours, other=theirs, metric=metric, alpha=0.05) for ours, theirs in pairs
    ]
    assert sum(map(proven, by_rows)) >= at_least  # one-sided; 2.5 % are expected at alpha
    assert sum(map(proven, by_documents)) <= 4
    for effect in by_documents:
        assert (effect.p_value < 0.05) == (effect.interval[0] > 0 or effect.interval[1] < 0)


def test_ten_copies_of_the_test_rows_give_the_same_p_value_and_interval() -> None:
    right = np.arange(100) < np.array([[80], [73]])
    ours, theirs = (table(hits, documents=None) for hits in right)
    once = compare(ours, other=theirs, metric="accuracy", alpha=0.05)
    copied = [table(np.tile(hits, 10), documents=np.tile(np.arange(100), 10)) for hits in right]
    result = compare(copied[0], other=copied[1], metric="accuracy", alpha=0.05)
    unaware = [replace(copy, clusters=None) for copy in copied]
    assert compare(unaware[0], other=unaware[1], metric="accuracy", alpha=0.05).p_value < 1e-4
    assert result.p_value == pytest.approx(once.p_value, abs=0.01)
    assert result.interval == pytest.approx(once.interval, abs=0.02)


def test_rows_with_the_same_text_share_a_cluster_unless_split_keys_define_clusters() -> None:
    def of(
        texts: tuple[str, ...], split_keys: tuple[str, ...] | None = None
    ) -> tuple[str, ...] | None:
        n = len(texts)
        rows = Rows(
            row_ids=tuple(map(str, range(n))), texts=texts, labels=("a",) * n, split_keys=split_keys
        )
        ones = np.ones(n)
        return label_predictions(
            "probe", rows=rows, outputs=("a",) * n, confidences=ones, calibrated=ones
        ).clusters

    assert of(("One text", "another")) is None
    assert of(("One text", "another", "one  TEXT")) == ("0", "1", "0")
    assert of(("One text", "another", "one  TEXT"), ("patient 3", "patient 9", "patient 9")) == (
        "0",
        "1",
        "1",
    )


def test_the_detectable_gain_and_the_rows_needed_are_computed_for_documents() -> None:
    documents = np.repeat(np.arange(20), 20)
    generator = np.random.default_rng(1)
    ours, theirs = (
        table((generator.random(20) < 0.7)[documents], documents=documents) for _ in range(2)
    )
    of_documents = compare(ours, other=theirs, metric="accuracy", alpha=0.05)
    by_rows = compare(replace(ours, clusters=None), other=theirs, metric="accuracy", alpha=0.05)
    assert of_documents.num_units == 20
    assert smallest_detectable(of_documents, alpha=0.05) > 3 * smallest_detectable(
        by_rows, alpha=0.05
    )


def test_a_group_passes_with_the_rows_that_it_needs() -> None:
    limits = SubgroupGateConfig(max_loss=0.03)

    def bound(num_documents: int) -> tuple[str, int | None]:
        same = table(
            np.ones(2 * num_documents, bool), documents=np.repeat(np.arange(num_documents), 2)
        )
        same = replace(same, groups={"sex": ("f",) * len(same)})
        (result,) = groups_gate(same, incumbent=same, limits=limits, alpha=0.05).bounds
        return str(result.state), result.rows_needed

    state, needed = bound(40)
    assert state == "not assessable"
    assert needed is not None
    assert bound(-(-needed // 2)) == ("passes", None)
