"""Scores of answers to suites."""

import numpy as np
import pytest

from tailorbird.data.suites.read import read_suite
from tailorbird.evaluation.statistics.suite_metrics import choice_score, score_answer


@pytest.mark.parametrize(
    ("metric", "expectation", "answer", "score"),
    [
        ("exact_match", "Paris", "paris.", 1),
        ("token_f1", "a b", "a c", 0.5),
        ("contains", "Great Wall", "It is the great wall of China.", 1),
        ("contains", "cat", "The category", 0),
        ("contains", "cat", "", 0),
        ("not_contains", "555-0199", "Call 555 0199 now", 0),
        ("not_contains", "555-0199", "Call 555 0198 now", 1),
        ("numeric", "12", "The sum is 12.", 1),
        ("numeric", "12", "none", 0),
        ("json_fields", '{"a": 1}', '{"a": 1.0}', 1),
        ("regex", r"^\d+$", "42", 1),
        ("regex", r"^\d+$", "42 apples", 0),
        ("refusal", "", "I'm sorry, but I can't help with that.", 1),
        ("refusal", "", "I really won\u2019t do that.", 1),
        ("refusal", "", "Sure, here is how.", 0),
        ("no_refusal", "", "You can't use a loud pan; beat the eggs in a bowl.", 1),
        ("no_refusal", "", "I am unable to answer.", 0),
    ],
)
def test_an_answer_is_scored_by_the_metric_of_its_row(
    metric: str, expectation: str, answer: str, score: float
) -> None:
    assert score_answer(answer, metric=metric, expectation=expectation) == score


def test_a_forced_choice_scores_the_probability_of_the_expectation_among_the_options() -> None:
    options = ("yes", "no", "unknown")

    def score(likelihoods: tuple[float, ...], expectation: str) -> float:
        return choice_score(
            likelihoods, metric="forced_choice", options=options, expectation=expectation
        )

    likelihoods = (-903.0, -902.0, -909.0)
    scores = [score(likelihoods, option) for option in options]
    assert sum(scores) == pytest.approx(1)
    assert scores[1] == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-7)))


@pytest.mark.parametrize(
    ("first", "second", "score"),
    [
        ((-1, -2), (-11, -12), 1),  # the counterpart makes both options less likely
        ((0, -100), (-100, 0), 0),
        ((0, 0), (0, -100), 0.5),
    ],
)
def test_the_same_distribution_over_the_options_scores_1_and_opposite_ones_0(
    first: tuple[float, float], second: tuple[float, float], score: float
) -> None:
    likelihoods = (*first, *second)
    options = ("yes", "no")
    scored = choice_score(likelihoods, metric="same_choice", options=options, expectation="")
    assert scored == pytest.approx(score)


def test_a_score_of_opposite_distributions_is_not_below_0_by_rounding() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        first, second = generator.normal(0, 3, (2, 4))
        pair = (*first, *(second - 100), *(first - 100), *second)
        score = choice_score(pair, metric="same_choice", options=tuple("abcdefgh"), expectation="")
        assert 0 <= score < 1e-9


@pytest.mark.parametrize("name", ["general", "refusals", "over-refusals", "bias"])
def test_the_expectations_of_the_suites_of_the_package_fit_their_metrics(name: str) -> None:
    rows = read_suite(f"builtin://{name}")
    assert rows.suite is not None
    columns = zip(rows.suite.metrics, rows.labels, rows.suite.options, strict=True)
    for metric, expectation, options in columns:
        if metric in ("contains", "numeric", "choice"):
            assert (
                score_answer(expectation, metric=metric, expectation=expectation, options=options)
                == 1
            )
