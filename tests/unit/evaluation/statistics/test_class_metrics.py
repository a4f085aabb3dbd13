"""Tests of macro-F1 and its jackknife against scikit-learn, a bootstrap and simulated true
effects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.class_metrics import class_metric_effect, jackknife_values
from tailorbird.evaluation.statistics.effect import Effect
from tailorbird.evaluation.statistics.scoring import score_of
from tests import build

letters = st.sampled_from("abcd")


def answers(
    n: int, *, accuracies: tuple[float, float], seed: int
) -> tuple[Predictions, Predictions]:
    """Return two models on three unbalanced classes; a wrong answer is a random class."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(list("abc"), n, p=[0.6, 0.3, 0.1])
    tables = []
    for share in accuracies:
        is_right = generator.random(n) < share
        outputs = np.where(is_right, labels, generator.choice(list("abc"), n))
        tables.append(build.predictions(outputs.tolist(), labels.tolist()))
    return tables[0], tables[1]


def effect_of(models: tuple[Predictions, Predictions], *, alpha: float) -> Effect:
    return class_metric_effect(models[0], other=models[1], metric="macro_f1", alpha=alpha)


def macro_f1(labels: Sequence[str], outputs: Sequence[str]) -> float:
    return score_of("macro_f1", labels=labels, outputs=outputs)


@given(st.lists(st.tuples(st.sampled_from("abc"), letters), min_size=1, max_size=60))
def test_macro_f1_equals_scikit_learns_over_the_classes_of_the_labels(
    rows: list[tuple[str, str]],
) -> None:
    labels, outputs = zip(*rows, strict=True)
    expected = f1_score(
        labels, outputs, labels=sorted(set(labels)), average="macro", zero_division=0
    )
    assert macro_f1(labels, outputs) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        macro_f1([], [])


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.sampled_from("abc"), letters), min_size=2, max_size=30))
def test_the_jackknife_values_have_the_mean_and_the_spread_of_macro_f1_without_each_row(
    rows: list[tuple[str, str]],
) -> None:
    labels, outputs = zip(*rows, strict=True)
    values = jackknife_values(build.predictions(outputs, labels), metric="macro_f1")
    assert values.mean() == pytest.approx(macro_f1(labels, outputs), abs=1e-12)
    without = []
    for row in range(len(rows)):
        columns = (column[:row] + column[row + 1 :] for column in (labels, outputs))
        without.append(macro_f1(*columns))
    expected = (len(rows) - 1) * (np.mean(without) - np.array(without))
    assert values - values.mean() == pytest.approx(expected, abs=1e-10)


def test_the_macro_f1_interval_has_its_nominal_coverage_and_the_p_value_its_nominal_level() -> None:
    population = answers(50_000, accuracies=(0.8, 0.7), seed=4)
    scores = [macro_f1(model.labels, model.outputs) for model in population]
    generator = np.random.default_rng(5)
    num_covered = 0
    num_significant = 0
    for seed in range(200):
        rows = generator.integers(0, 50_000, 400).tolist()
        ids = tuple(map(str, range(400)))
        first, second = (replace(model.take(rows), row_ids=ids) for model in population)
        low, high = effect_of((first, second), alpha=0.1).interval
        num_covered += low <= scores[0] - scores[1] <= high
        equal = answers(400, accuracies=(0.75, 0.75), seed=1_000 + seed)
        num_significant += effect_of(equal, alpha=0.1).p_value < 0.1
    # 200 tests: three standard errors of a rate of 0.1 are 0.064.
    assert num_covered / 200 >= 0.9 - 0.064
    assert num_significant / 200 <= 0.1 + 0.064
