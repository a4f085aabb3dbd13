"""Tests of the text metrics against manual calculations and a simple algorithm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.statistics.text_metrics import (
    TEXT_METRICS,
    exact_match,
    rouge_l,
    token_f1,
    words,
    words_sha256,
)


def test_words_are_compared_without_case_punctuation_and_unicode_form() -> None:
    assert words("J67.0  Farmer's LUNG, (acute) ﬁne; well-known.") == [
        "j67.0", "farmer", "s", "lung", "acute", "fine", "well-known",
    ]  # fmt: skip
    assert words("日本 語!") == ["日本", "語"]


def test_token_f1_counts_repeated_words() -> None:
    assert token_f1("a a b", "a b b") == pytest.approx(2 / 3)
    assert token_f1("the cat sat", "the cat") == pytest.approx(0.8)
    assert token_f1("", "") == 1
    assert token_f1("", "a") == token_f1("b", "a") == 0


TEXTS = st.text("ab c", max_size=40)


@given(TEXTS, TEXTS)
def test_rouge_l_agrees_with_a_simple_algorithm(answer: str, reference: str) -> None:
    first = words(answer)
    second = words(reference)
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if word == other else max(table[i][j + 1], table[i + 1][j])
            )
    wanted = 2 * table[-1][-1] / (len(first) + len(second)) if first or second else 1.0
    assert rouge_l(answer, reference) == pytest.approx(wanted)


@given(TEXTS, TEXTS)
def test_every_metric_is_symmetric_in_0_to_1_and_1_for_equal_texts(
    answer: str, reference: str
) -> None:
    for score in TEXT_METRICS.values():
        assert 0 <= score(answer, reference) <= 1
        assert score(answer, reference) == score(reference, answer)
        assert score(answer, answer) == 1
    assert rouge_l(answer, reference) <= token_f1(answer, reference)
    assert (words_sha256(answer) == words_sha256(reference)) == (
        exact_match(answer, reference) == 1
    )
