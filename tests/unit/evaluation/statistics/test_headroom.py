"""Tests of the most that another model can gain over a model that is almost always right."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.effect import unseen_rate
from tailorbird.evaluation.statistics.headroom import headroom_of, highest_rate
from tests import build
from tests.unit.evaluation.verdict.tables import predictions


def with_classes(num_rows: int, *, wrong: list[int]) -> Predictions:
    """Return a model of five classes that answers these rows with the next class; the last class is
    the rarest, with 20 rows."""
    codes = np.arange(num_rows) % 4
    codes[-20:] = 4
    outputs = codes.copy()
    outputs[wrong] = (codes[wrong] + 1) % 5
    return build.predictions([*map(str, outputs)], [*map(str, codes)])


@pytest.mark.parametrize("num_errors", [0, 1, 7, 49, 50])
def test_the_bound_of_a_share_is_that_of_clopper_and_pearson(num_errors: int) -> None:
    exact = binomtest(num_errors, 50, alternative="less").proportion_ci(0.95, method="exact").high
    assert highest_rate(num_errors, n=50, alpha=0.05) == pytest.approx(exact)
    assert highest_rate(0, n=50, alpha=0.05) == pytest.approx(unseen_rate(50, alpha=0.1))


@pytest.mark.parametrize("size", [1, 10, 60, 200])
def test_rows_of_one_document_count_as_one_unit(size: int) -> None:
    table = replace(
        predictions("probe", np.ones(600, bool)),
        clusters=tuple(str(row // size) for row in range(600)),
    )
    most = headroom_of(table, metric="accuracy", alpha=0.05).most
    # 3 documents are too few for an interval
    assert most == pytest.approx(1.0 if size == 200 else unseen_rate(600 / size, alpha=0.1))


def test_a_mean_of_scores_that_are_almost_1_leaves_at_least_what_unseen_rows_can() -> None:
    table = replace(
        predictions("probe", np.ones(2000, bool)), measures={"token_f1": np.full(2000, 0.999)}
    )
    headroom = headroom_of(table, metric="token_f1", alpha=0.05)
    assert headroom.score == pytest.approx(0.999)
    assert 0.001 + unseen_rate(2000, alpha=0.1) < headroom.most < 0.004


def test_a_rare_class_leaves_more_of_macro_f1_than_of_accuracy_and_its_errors_are_counted() -> None:
    table = with_classes(4000, wrong=[])
    assert headroom_of(table, metric="accuracy", alpha=0.05).most < 0.001
    most = headroom_of(table, metric="macro_f1", alpha=0.05).most
    assert most == pytest.approx(highest_rate(0, n=100, alpha=0.05))
    headroom = headroom_of(with_classes(4000, wrong=[3999]), metric="macro_f1", alpha=0.05)
    assert headroom.most > 1 - headroom.score + 0.02


def test_the_bound_is_rarely_below_the_truth() -> None:
    """In at most 5% of samples, plus three standard errors of 400 samples."""
    generator = np.random.default_rng(3)
    num_tests = 400
    rate = 0.004
    for metric in ("accuracy", "macro_f1", "token_f1"):
        too_low = 0
        for _ in range(num_tests):
            wrong = np.flatnonzero(generator.random(1000) < rate)
            table = with_classes(1000, wrong=wrong.tolist())
            table = replace(table, measures={"token_f1": table.scores})
            too_low += headroom_of(table, metric=metric, alpha=0.05).most < rate
        assert too_low / num_tests <= 0.08, metric
