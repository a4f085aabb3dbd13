"""Tests of simulated tests: their true gains, spreads and intervals, for rows and for documents."""

import numpy as np
import pytest

from tailorbird.evaluation.statistics.bootstrap import macro_f1_contributions
from tailorbird.evaluation.statistics.documents import document_effect, documents_of
from tailorbird.evaluation.statistics.scoring import macro_f1
from tailorbird.evaluation.statistics.simulation import TestedRows
from tests.unit.evaluation.simulated import Simulation, tables_of

NUM_ROWS, NUM_TESTS = 1_500, 2_000


def rows_of(*, by_document: bool = False, fractional: bool = False, num_groups: int = 3) -> TestedRows:
    """Return rows of two models with correlated scores in groups of equal size."""
    generator = np.random.default_rng(4)
    shared = generator.standard_normal(NUM_ROWS)
    scores = [np.sqrt(0.8) * shared + np.sqrt(0.2) * generator.standard_normal(NUM_ROWS) for _ in range(2)]
    ours, theirs = (1 / (1 + np.exp(-score)) if fractional else (score > -0.7).astype(float) for score in scores)
    members = (np.arange(NUM_ROWS) % num_groups)[:, None] == np.arange(num_groups)
    changes = np.array([0.0, 0.02, 0.04][:num_groups])
    documents = documents_of([str(row // 5) for row in range(NUM_ROWS)], num_rows=NUM_ROWS) if by_document else None
    return TestedRows(ours[:, None], theirs[:, None], members, changes, documents)


@pytest.mark.parametrize("rows", [rows_of(), rows_of(by_document=True), rows_of(fractional=True)])
@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_simulated_tests_have_the_true_gain_in_total_and_the_moved_changes_in_groups(
    rows: TestedRows, gain: float
) -> None:
    tests = rows.simulate(gain, num_rows=NUM_ROWS, num_tests=NUM_TESTS)
    assert tests.gains.mean() == pytest.approx(gain, abs=0.001)
    assert tests.group_gains.mean(axis=0) == pytest.approx(rows.group_changes - 0.02 + gain, abs=0.002)
    assert tests.group_gains.std(axis=0) == pytest.approx(tests.group_errors.mean(axis=0), rel=0.1)
    low, high = tests.intervals(0.05)
    assert np.mean((low <= gain) & (gain <= high)) == pytest.approx(0.95, abs=0.02)
    assert np.mean(tests.p_values < 0.05) == pytest.approx(np.mean((low > 0) | (high < 0)), abs=0.01)


def test_documents_have_the_standard_error_of_the_cluster_robust_test() -> None:
    rows = rows_of(by_document=True)
    assert rows.documents is not None
    effect = document_effect((rows.ours - rows.theirs)[:, 0], documents=rows.documents, alpha=0.05)
    tests = rows.simulate(0.02, num_rows=NUM_ROWS, num_tests=NUM_TESTS)
    assert tests.gains.std() == pytest.approx(effect.standard_error, rel=0.05)
    assert tests.freedom[0] == pytest.approx(effect.degrees_of_freedom)
    few = rows.simulate(0.02, num_rows=25, num_tests=10)
    assert (few.p_values == 1).all()


def test_four_times_the_rows_halve_the_spread() -> None:
    for rows in (rows_of(), rows_of(by_document=True)):
        once, four = (rows.simulate(0.02, num_rows=num * NUM_ROWS, num_tests=NUM_TESTS).gains.std() for num in (1, 4))
        assert once / four == pytest.approx(2, rel=0.06)


def test_simulations_are_deterministic() -> None:
    first, second = (rows_of().simulate(0.02, num_rows=500, num_tests=50).gains for _ in range(2))
    assert (first == second).all()


def test_identical_models_can_have_a_hypothetical_gain() -> None:
    rows = rows_of(num_groups=1)
    same = TestedRows(rows.ours, rows.ours, rows.members, np.zeros(1), None)
    assert same.simulate(0.02, num_rows=NUM_ROWS, num_tests=NUM_TESTS).gains.mean() == pytest.approx(0.02, abs=0.002)


def test_the_contributions_of_rows_have_the_mean_and_the_spread_of_macro_f1() -> None:
    table = tables_of(Simulation(num_rows=900))["candidate"]
    scores = macro_f1_contributions(table)
    assert scores.mean() == pytest.approx(macro_f1(table.labels, outputs=table.outputs))
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(400):
        drawn = generator.integers(0, 900, 900)
        resampled.append(macro_f1([table.labels[row] for row in drawn], outputs=[table.outputs[row] for row in drawn]))
    assert scores.std() / np.sqrt(900) == pytest.approx(np.std(resampled), rel=0.12)
