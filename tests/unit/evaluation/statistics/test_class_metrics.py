"""Tests of macro-F1 and its jackknife against scikit-learn, a bootstrap and simulated true
effects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.class_metrics import class_metric_effect, jackknife_values
from tailorbird.evaluation.statistics.scoring import score_of

letters = st.sampled_from("abcd")
answered = st.lists(st.tuples(letters, letters, letters), min_size=1, max_size=60)


def predictions(outputs: np.ndarray, *, labels: np.ndarray) -> Predictions:
    right, ids = (labels == outputs).astype(np.float64), tuple(map(str, range(len(labels))))
    truth, answer = (tuple(map(str, values.tolist())) for values in (labels, outputs))
    return Predictions("model", ids, truth, answer, right, *2 * (np.full(len(labels), 0.5),))


def answers(
    n: int, *, accuracies: tuple[float, float], seed: int
) -> tuple[Predictions, Predictions]:
    """Return two models on three unbalanced classes; a wrong answer is a random class."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1])
    first, second = (
        predictions(
            np.where(generator.random(n) < share, labels, generator.choice(["a", "b", "c"], n)),
            labels=labels,
        )
        for share in accuracies
    )
    return first, second


@given(st.lists(st.tuples(st.sampled_from("abc"), letters), min_size=1, max_size=60))
def test_macro_f1_equals_scikit_learns_over_the_classes_of_the_labels(
    rows: list[tuple[str, str]],
) -> None:
    labels, outputs = zip(*rows, strict=True)
    expected = f1_score(
        labels, outputs, labels=sorted(set(labels)), average="macro", zero_division=0
    )
    assert score_of("macro_f1", labels=labels, outputs=outputs) == pytest.approx(
        expected, abs=1e-12
    )


def test_macro_f1_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        score_of("macro_f1", labels=[], outputs=[])


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.sampled_from("abc"), letters), min_size=2, max_size=30))
def test_the_jackknife_values_have_the_mean_and_the_spread_of_macro_f1_without_each_row(
    rows: list[tuple[str, str]],
) -> None:
    labels, outputs = (np.array(column) for column in zip(*rows, strict=True))
    values = jackknife_values(predictions(outputs, labels=labels), metric="macro_f1")
    assert values.mean() == pytest.approx(
        score_of("macro_f1", labels=labels.tolist(), outputs=outputs.tolist()), abs=1e-12
    )
    without = np.array(
        [
            score_of(
                "macro_f1",
                labels=np.delete(labels, row).tolist(),
                outputs=np.delete(outputs, row).tolist(),
            )
            for row in range(len(rows))
        ]
    )
    assert values - values.mean() == pytest.approx(
        (len(rows) - 1) * (without.mean() - without), abs=1e-10
    )


def test_the_macro_f1_interval_of_identical_models_has_the_width_of_the_unseen_rate() -> None:
    agreed = {n: answers(n, accuracies=(0.8, 0.7), seed=0)[0] for n in (10, 4000)}
    intervals = {
        n: class_metric_effect(model, other=model, metric="macro_f1", alpha=0.05).interval
        for n, model in agreed.items()
    }
    assert intervals[10] == pytest.approx(
        (-0.3085, 0.3085), abs=1e-4
    )  # Clopper and Pearson's limit at 0 of 10
    assert intervals[4000] == pytest.approx((-0.00092, 0.00092), abs=1e-5)


def test_the_macro_f1_interval_has_its_nominal_coverage_and_the_p_value_its_nominal_level() -> None:
    population = [
        np.array(model.outputs) for model in answers(50_000, accuracies=(0.8, 0.7), seed=4)
    ]
    labels = np.array(answers(50_000, accuracies=(0.8, 0.7), seed=4)[0].labels)
    truth = score_of("macro_f1", labels=labels.tolist(), outputs=population[0].tolist()) - score_of(
        "macro_f1", labels=labels.tolist(), outputs=population[1].tolist()
    )
    generator, held, apart = np.random.default_rng(5), 0, 0
    for seed in range(200):
        rows = generator.integers(0, 50_000, 400)
        ours, theirs = (predictions(outputs[rows], labels=labels[rows]) for outputs in population)
        low, high = class_metric_effect(ours, other=theirs, metric="macro_f1", alpha=0.1).interval
        held += low <= truth <= high
        equal = answers(400, accuracies=(0.75, 0.75), seed=1_000 + seed)
        apart += (
            class_metric_effect(equal[0], other=equal[1], metric="macro_f1", alpha=0.1).p_value
            < 0.1
        )
    # 200 tests: three standard errors of a rate of 0.1 are 0.064.
    assert held / 200 >= 0.9 - 0.064
    assert apart / 200 <= 0.1 + 0.064


@pytest.mark.parametrize("seed", [14, 16, 22])
def test_the_interval_excludes_0_exactly_at_the_levels_above_the_p_value(seed: int) -> None:
    better, worse = answers(300, accuracies=(0.85, 0.65), seed=seed)
    lows = [
        class_metric_effect(better, other=worse, metric="macro_f1", alpha=alpha).interval[0]
        for alpha in (0.05, 0.002, 1e-4, 1e-6, 1e-12)
    ]
    assert lows == sorted(lows, reverse=True)
    p_value = class_metric_effect(better, other=worse, metric="macro_f1", alpha=0.05).p_value
    assert 1e-12 < p_value < 0.002
    around = [
        class_metric_effect(
            better, other=worse, metric="macro_f1", alpha=p_value * factor
        ).interval[0]
        for factor in (1.01, 0.99)
    ]
    assert around[0] > 0 >= around[1]
