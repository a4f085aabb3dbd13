"""Tests that draws are multinomial, and that they are the same with each version of NumPy."""

import numpy as np
import pytest
from scipy import stats

from tailorbird.evaluation.statistics import draws
from tailorbird.evaluation.statistics.draws import MANY_ROWS, multinomial, multinomial_counts

CELLS = [[400, 90, 10], [1] * 40, [3, 200, 1, 15, 16, 5], [20, 12], [3_000, 0, 2_000]]


def assert_multinomial(drawn: np.ndarray, *, shares: np.ndarray, num_rows: int) -> None:
    covariance = num_rows * (np.diag(shares) - np.outer(shares, shares))
    error = np.sqrt(covariance.max() / len(drawn))
    assert drawn.mean(axis=0) == pytest.approx(num_rows * shares, abs=5 * error)
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.05 * covariance.max())


@pytest.mark.parametrize("counts", CELLS)
def test_cells_are_drawn_from_the_multinomial(counts: list[int]) -> None:
    cells, n = np.array(counts), sum(counts)
    drawn = np.concatenate(list(multinomial_counts(cells, num_resamples=20_000, seed=0)))
    assert drawn.shape == (20_000, len(counts))
    assert (drawn.sum(axis=1) == n).all()
    assert_multinomial(drawn, shares=cells / n, num_rows=n)


@pytest.mark.parametrize("num_rows", [1, 40, 1_000, MANY_ROWS, 100 * MANY_ROWS])
def test_tests_are_drawn_from_the_multinomial(num_rows: int) -> None:
    shares = np.array([0.62, 0.1, 0.07, 0.2, 0.01, 0.0])
    drawn = multinomial(np.random.default_rng(0), shares, num_rows=num_rows, num_tests=20_000)
    assert drawn.shape == (20_000, 6)
    if num_rows > MANY_ROWS:
        assert drawn.sum(axis=1) == pytest.approx(num_rows, rel=0.01)
        drawn = drawn * (num_rows / drawn.sum(axis=1, keepdims=True))
    else:
        assert (drawn.sum(axis=1) == num_rows).all()
    assert_multinomial(drawn, shares=shares, num_rows=num_rows)


@pytest.mark.parametrize("num_rows", [30, 700])
def test_the_rows_of_a_cell_have_a_binomial_distribution(num_rows: int) -> None:
    cells = np.array([num_rows // 10, num_rows - num_rows // 10])
    counted = np.concatenate(list(multinomial_counts(cells, num_resamples=50_000, seed=1)))[:, 0]
    simulated = multinomial(np.random.default_rng(2), cells / num_rows, num_rows=num_rows, num_tests=50_000)[:, 0]
    for drawn in (counted, simulated):
        seen = np.bincount(drawn, minlength=num_rows + 1)
        expected = 50_000 * stats.binom.pmf(np.arange(num_rows + 1), num_rows, cells[0] / num_rows)
        usual = expected > 10
        rest = [seen[~usual].sum()], [expected[~usual].sum()]
        observed, theory = (np.append(each[usual], end) for each, end in zip((seen, expected), rest, strict=True))
        assert stats.chisquare(observed, theory).pvalue > 0.001


def test_chunks_of_resamples_have_at_most_chunk_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "CHUNK_ELEMENTS", 1_000)
    chunks = [len(weights) for weights in multinomial_counts(np.full(300, 2), num_resamples=10, seed=0)]
    assert chunks == [3, 3, 3, 1]


def test_draws_are_the_same_with_each_version_of_numpy() -> None:
    """`verify` repeats them, so a new version of NumPy must not change any of them."""
    [counts] = multinomial_counts(np.array([400, 90, 10, 120]), num_resamples=3, seed=5)
    assert counts.tolist() == [[401, 81, 23, 115], [434, 77, 11, 98], [407, 93, 8, 112]]
    shares = np.array([0.62, 0.3, 0.08])
    tests = multinomial(np.random.default_rng(6), shares, num_rows=900, num_tests=3)
    assert tests.tolist() == [[554, 269, 77], [529, 305, 66], [557, 266, 77]]
    many = multinomial(np.random.default_rng(7), shares, num_rows=90_000, num_tests=2)
    assert many.tolist() == [[55875, 27124, 7155], [56099, 26876, 7297]]


def test_numpys_draws_in_a_verdict_are_the_same_with_each_version() -> None:
    """If one of them changes, replace it in `tailorbird.evaluation`, so that `verify` still gives earlier values."""
    normal, chi_square, gamma, hypergeometric = (np.random.default_rng(seed) for seed in (8, 9, 10, 11))
    assert normal.standard_normal(3) == pytest.approx([-1.738266398496882, -1.3366427931811324, -1.361106708564987])
    assert chi_square.chisquare(11.5, 3) == pytest.approx([7.509559299053382, 4.807823558192283, 17.07505740489907])
    assert gamma.standard_gamma([1, 3, 250]) == pytest.approx(
        [0.7743209689260865, 1.649282721295668, 253.90891379420182]
    )
    assert hypergeometric.hypergeometric(700, 300, [5, 200, 400]).tolist() == [5, 142, 276]
