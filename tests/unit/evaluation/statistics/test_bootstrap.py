"""Tests of the bootstrap and the sign-flip test against scikit-learn, scipy and simulated true effects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics import bootstrap
from tailorbird.evaluation.statistics.bootstrap import (
    likelihood_interval,
    macro_f1_effect,
    macro_f1_gain,
    mean_effect,
    two_sided,
)
from tailorbird.evaluation.statistics.effect import Effect
from tailorbird.evaluation.statistics.scoring import macro_f1
from tailorbird.registry.test_set_ledger import share_of_alpha

letters = st.sampled_from("abcd")
answered = st.lists(st.tuples(letters, letters, letters), min_size=1, max_size=60)


def predictions(outputs: np.ndarray, *, labels: np.ndarray) -> Predictions:
    right, ids = (labels == outputs).astype(np.float64), tuple(map(str, range(len(labels))))
    truth, answer = (tuple(map(str, values.tolist())) for values in (labels, outputs))
    return Predictions("model", ids, truth, answer, right, *2 * (np.full(len(labels), 0.5),))


def answers(n: int, *, accuracies: tuple[float, float], seed: int) -> tuple[Predictions, Predictions]:
    """Return two models on three unbalanced classes; a wrong answer is a random class."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1])
    first, second = (
        predictions(np.where(generator.random(n) < share, labels, generator.choice(["a", "b", "c"], n)), labels=labels)
        for share in accuracies
    )
    return first, second


def effect_of(rows: list[tuple[str, str, str]], *, alpha: float = 0.05) -> Effect:
    labels, ours, theirs = (np.array(column) for column in zip(*rows, strict=True))
    return macro_f1_effect(predictions(ours, labels=labels), other=predictions(theirs, labels=labels), alpha=alpha)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 400)


@given(st.lists(st.tuples(st.sampled_from("abc"), letters), min_size=1, max_size=60))
def test_macro_f1_equals_scikit_learns_over_the_classes_of_the_labels(rows: list[tuple[str, str]]) -> None:
    labels, outputs = zip(*rows, strict=True)
    expected = f1_score(labels, outputs, labels=sorted(set(labels)), average="macro", zero_division=0)
    assert macro_f1(labels, outputs=outputs) == pytest.approx(expected, abs=1e-12)


def test_macro_f1_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        macro_f1([], outputs=[])


@settings(deadline=None, max_examples=15)
@given(answered)
def test_the_gain_is_the_difference_of_the_two_scores(rows: list[tuple[str, str, str]]) -> None:
    labels, ours, theirs = zip(*rows, strict=True)
    expected = macro_f1(labels, outputs=ours) - macro_f1(labels, outputs=theirs)
    assert effect_of(rows).gain == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=15)
@given(answered)
def test_swapping_the_models_changes_only_the_sign_of_a_macro_f1_effect(rows: list[tuple[str, str, str]]) -> None:
    effect, swapped = effect_of(rows), effect_of([(label, theirs, ours) for label, ours, theirs in rows])
    assert swapped.gain == -effect.gain
    assert swapped.interval == pytest.approx((-effect.interval[1], -effect.interval[0]), abs=1e-9)
    assert swapped.p_value == effect.p_value
    assert swapped.standard_error == pytest.approx(effect.standard_error)


def test_effects_are_deterministic() -> None:
    first, second = answers(200, accuracies=(0.8, 0.7), seed=0)
    assert macro_f1_effect(first, other=second, alpha=0.05) == macro_f1_effect(first, other=second, alpha=0.05)
    scores = first.scores, second.scores
    again = [mean_effect(scores[0], other_scores=scores[1], alpha=0.05) for _ in range(2)]
    assert again[0] == again[1]


def test_a_model_against_itself_has_no_gain_and_p_is_one() -> None:
    model, _ = answers(200, accuracies=(0.8, 0.7), seed=0)
    equal = mean_effect(model.scores, other_scores=model.scores, alpha=0.05)
    assert (equal.gain, equal.p_value, equal.standard_error) == (0.0, 1.0, 0.0)
    same = macro_f1_effect(model, other=model, alpha=0.05)
    assert (same.gain, same.p_value, same.standard_error) == (0.0, 1.0, 0.0)


def test_the_macro_f1_interval_of_identical_models_has_the_width_of_the_unseen_rate() -> None:
    agreed = {n: answers(n, accuracies=(0.8, 0.7), seed=0)[0] for n in (10, 4000)}
    intervals = {n: macro_f1_effect(model, other=model, alpha=0.05).interval for n, model in agreed.items()}
    assert intervals[10] == pytest.approx((-0.3085, 0.3085), abs=1e-4)  # Clopper and Pearson's limit at 0 of 10
    assert intervals[4000] == pytest.approx((-0.00092, 0.00092), abs=1e-5)


def test_a_smaller_alpha_gives_a_wider_interval_around_the_gain() -> None:
    first, second = answers(300, accuracies=(0.8, 0.7), seed=1)
    (low, high), (wider_low, wider_high) = (
        macro_f1_effect(first, other=second, alpha=alpha).interval for alpha in (0.05, 0.01)
    )
    assert wider_low < low < macro_f1_effect(first, other=second, alpha=0.05).gain < high < wider_high


def test_the_macro_f1_interval_equals_that_of_resampled_rows_and_scikit_learn() -> None:
    first, second = answers(120, accuracies=(0.8, 0.65), seed=2)
    labels, ours, theirs = (np.array(values) for values in (first.labels, first.outputs, second.outputs))

    def gain(rows: np.ndarray) -> float:
        drawn = labels[rows]
        scores = [
            f1_score(drawn, outputs[rows], labels=np.unique(drawn), average="macro", zero_division=0)
            for outputs in (ours, theirs)
        ]
        return float(scores[0] - scores[1])

    generator = np.random.default_rng(3)
    gains = np.array([gain(generator.integers(0, 120, 120)) for _ in range(500)])
    effect = macro_f1_effect(first, other=second, alpha=0.05)
    # The 2.5% quantile of 500 draws is accurate to about 0.12 standard errors.
    assert effect.interval == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.35 * effect.standard_error)
    assert effect.standard_error == pytest.approx(np.std(gains), rel=0.12)
    assert effect.p_value == pytest.approx(two_sided(gains), abs=0.03)


@pytest.mark.usefixtures("few_resamples")
def test_the_macro_f1_interval_has_its_nominal_coverage_and_the_p_value_its_nominal_level() -> None:
    population = [np.array(model.outputs) for model in answers(50_000, accuracies=(0.8, 0.7), seed=4)]
    labels = np.array(answers(50_000, accuracies=(0.8, 0.7), seed=4)[0].labels)
    truth = macro_f1(labels.tolist(), outputs=population[0].tolist()) - macro_f1(
        labels.tolist(), outputs=population[1].tolist()
    )
    generator, held, apart = np.random.default_rng(5), 0, 0
    for seed in range(200):
        rows = generator.integers(0, 50_000, 400)
        ours, theirs = (predictions(outputs[rows], labels=labels[rows]) for outputs in population)
        low, high = macro_f1_effect(ours, other=theirs, alpha=0.1).interval
        held += low <= truth <= high
        equal = answers(400, accuracies=(0.75, 0.75), seed=1_000 + seed)
        apart += macro_f1_effect(equal[0], other=equal[1], alpha=0.1).p_value < 0.1
    # 200 tests: three standard errors of a rate of 0.1 are 0.064.
    assert held / 200 >= 0.9 - 0.064
    assert apart / 200 <= 0.1 + 0.064


def test_the_two_sided_p_value_adds_1_and_counts_ties_on_both_sides() -> None:
    assert two_sided(np.array([0.1] * 99)) == 2 / 100
    assert two_sided(np.array([0.1] * 90 + [-0.1] * 9)) == pytest.approx(2 * 10 / 100)
    assert two_sided(np.zeros(99)) == 1


def test_the_interval_of_the_mean_of_many_rows_equals_scipys_t_interval() -> None:
    generator = np.random.default_rng(6)
    ours, theirs = generator.random(400), generator.random(400) * 0.9
    effect = mean_effect(ours, other_scores=theirs, alpha=0.05)
    expected = stats.ttest_rel(ours, theirs)
    assert effect.gain == pytest.approx(np.mean(ours - theirs))
    assert effect.interval == pytest.approx(expected.confidence_interval(), abs=0.02 * effect.standard_error)
    assert effect.standard_error == pytest.approx(stats.sem(ours - theirs))


def test_the_likelihood_interval_of_equal_losses_is_that_of_a_binomial_share() -> None:
    """k losses of 1 among n rows: the limits solve n log-likelihood ratio = threshold of F(1, n - 1) / 2."""
    losses = np.repeat([0.0, -1.0], [95, 5])
    low, high = likelihood_interval(losses, alpha=0.05)
    threshold = stats.f.isf(0.05, 1, 99) / 2

    def ratio(share: float) -> float:
        return float(5 * np.log(0.05 / share) + 95 * np.log(0.95 / (1 - share)))

    assert ratio(-low) == pytest.approx(threshold, abs=1e-6)
    assert low < -0.05 < high < 0


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25])
def test_the_p_value_of_a_mean_equals_scipys_exact_sign_flip_test(shift: float) -> None:
    generator = np.random.default_rng(8)
    ours, theirs = generator.random(12) + shift, generator.random(12)
    exact = stats.permutation_test((ours - theirs,), np.sum, permutation_type="samples", n_resamples=np.inf)
    # With 10,000 flips, three standard errors of p = 0.5 are 0.015.
    assert mean_effect(ours, other_scores=theirs, alpha=0.05).p_value == pytest.approx(exact.pvalue, abs=0.015)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60))
def test_swapping_the_models_changes_only_the_sign_of_a_mean_effect(rows: list[tuple[int, int]]) -> None:
    ours, theirs = np.array(rows, dtype=np.float64).T / 4
    effect = mean_effect(ours, other_scores=theirs, alpha=0.05)
    swapped = mean_effect(theirs, other_scores=ours, alpha=0.05)
    assert (swapped.gain, swapped.p_value) == (-effect.gain, effect.p_value)
    assert swapped.interval == pytest.approx((-effect.interval[1], -effect.interval[0]), abs=1e-9)
    assert 0 < effect.p_value <= 1


@pytest.mark.usefixtures("few_resamples")
def test_equal_means_are_significant_at_most_at_alpha() -> None:
    generator = np.random.default_rng(11)
    samples = generator.standard_normal((400, 2, 60))
    significant = [mean_effect(ours, other_scores=theirs, alpha=0.05).p_value < 0.05 for ours, theirs in samples]
    # 400 tests: three standard errors of a rate of 0.05 are 0.033.
    assert 0.05 - 0.033 <= np.mean(significant) <= 0.05 + 0.033


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([0.1, 0.2], [0.1], "two finite scores per row"),
        ([0.1, np.nan], [0.1, 0.2], "two finite scores per row"),
        ([0.1], [0.2], "at least 2 rows"),
    ],
)
def test_invalid_scores_are_refused(ours: list[float], theirs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_effect(np.array(ours), other_scores=np.array(theirs), alpha=0.05)


@pytest.mark.parametrize("access_number", [1, 8, 9, 24])
def test_a_large_gain_is_proven_at_any_access(access_number: int) -> None:
    """The level of the 24th access, divided by a family of three, is below the resolution of 10,000 resamples."""
    level = 0.05 * share_of_alpha(np.array([access_number])) / 3
    better, worse = answers(600, accuracies=(0.95, 0.5), seed=12)
    macro = macro_f1_effect(better, other=worse, alpha=level)
    generator = np.random.default_rng(13)
    mean = mean_effect(generator.normal(0.6, 0.1, 600), other_scores=generator.normal(0.4, 0.1, 600), alpha=level)
    for effect in (macro, mean):
        assert effect.p_value < level / 3
        assert effect.interval[0] > 0.1


@pytest.mark.parametrize("seed", [14, 16, 22])
def test_the_interval_continues_beyond_the_resamples_and_agrees_with_the_p_value(seed: int) -> None:
    """Seed 14 has a tail of the spread of the last quantile, the others of the standard error."""
    better, worse = answers(300, accuracies=(0.85, 0.65), seed=seed)
    gain = macro_f1_gain(better, other=worse)
    last = 2 * bootstrap.NUM_BEYOND / bootstrap.NUM_RESAMPLES
    lows = [gain.effect(alpha=alpha).interval[0] for alpha in (0.05, last, 0.9999 * last, 1e-4, 1e-6, 1e-12)]
    assert lows == sorted(lows, reverse=True)
    assert lows[2] == pytest.approx(lows[1], abs=1e-5)
    p_value = gain.effect(alpha=0.05).p_value
    assert 1e-12 < p_value < last
    assert gain.effect(alpha=p_value * 1.01).interval[0] > 0 >= gain.effect(alpha=p_value * 0.99).interval[0]


def test_the_interval_and_the_p_value_of_an_example_are_the_same_with_each_version_of_numpy() -> None:
    better, worse = answers(300, accuracies=(0.85, 0.65), seed=22)
    gain = macro_f1_gain(better, other=worse)
    assert gain.effect(alpha=0.05).interval == pytest.approx((0.06829714932605582, 0.24259964204481588))
    assert gain.effect(alpha=0.001).interval == pytest.approx((0.008667033624626076, 0.30213194615851696))
    assert gain.effect(alpha=0.05).p_value == pytest.approx(0.0004962318667860162)
