"""Tests of the measured resources: rounds, tokens, and shares of the rows."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tailorbird.evaluation.gates.cost import (
    RowTokens,
    ServingUsage,
    Tokens,
    TrainingUsage,
    shares_by_round,
    tokens_by_round,
)


@pytest.mark.parametrize("training", [-1.0, math.nan, math.inf])
def test_an_invalid_training_time_is_refused(training: float) -> None:
    with pytest.raises(ValueError, match="seconds of training"):
        TrainingUsage(cpu_s=training)


@pytest.mark.parametrize("cpu_s", [(1.0,) * 4, (1.0, 1, 1, 1, 0), (-1.0,) * 5, (math.nan,) * 5])
def test_rounds_must_be_positive_and_at_least_five(cpu_s: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"rounds|CPU-seconds"):
        ServingUsage(cpu_s)


def test_the_tokens_of_a_round_are_those_of_a_part_of_the_rows() -> None:
    rows = RowTokens("m", (10,) * 6 + (20,) * 4, (1, 2) * 5)
    tokens = tokens_by_round(rows)
    assert tokens.input == (10_000, 10_000, 10_000, 20_000, 20_000)
    assert tokens.output == (1_500, 1_500, 1_500, 1_500, 1_500)
    assert tokens.endpoint == "m"
    assert (
        tokens_by_round(RowTokens("m", (1, 3), (1, 1))).input == (2_000,) * 5
    )  # fewer rows than rounds


def test_rows_that_an_endpoint_does_not_answer_have_no_tokens() -> None:
    answered = np.array([False, True] * 5)
    rows = RowTokens("m", (None, 30) * 5, (None, 2) * 5)
    assert tokens_by_round(rows, answered=answered) == Tokens("m", (15_000,) * 5, (1_000,) * 5)
    assert not tokens_by_round(rows, answered=~answered).reported


def test_the_share_of_a_round_counts_rows_with_their_lengths() -> None:
    answered = np.array([True, False] * 4 + [True, True])
    assert shares_by_round(answered, lengths=np.ones(10)) == (0.5, 0.5, 0.5, 0.5, 1.0)
    lengths = np.array([30.0, 10.0] * 4 + [30.0, 10.0])
    assert shares_by_round(answered, lengths=lengths) == (0.75, 0.75, 0.75, 0.75, 1.0)
    assert shares_by_round(answered[-3:], lengths=np.ones(3)) == (2 / 3,) * 5
    assert shares_by_round(np.ones(10, dtype=bool), lengths=np.arange(10.0)) == (1.0,) * 5


@pytest.mark.parametrize("count", [-1.0, math.nan, math.inf])
def test_invalid_token_counts_are_refused(count: float) -> None:
    with pytest.raises(ValueError, match="output tokens"):
        Tokens("m", (1.0,) * 5, (count, 1.0, 1.0, 1.0, 1.0))


def test_all_resources_have_the_same_rounds() -> None:
    with pytest.raises(ValueError, match=r"\[5, 4\] rounds"):
        ServingUsage((1.0,) * 5, (2.0,) * 4)
    with pytest.raises(ValueError, match=r"\[5, 5, 5, 4\] rounds"):
        ServingUsage((1.0,) * 5, tokens=Tokens("m", (1.0,) * 5, (1.0,) * 4))
    with pytest.raises(ValueError, match=r"\[5, 5, 4, 4\] rounds"):
        ServingUsage((1.0,) * 5, tokens=Tokens("m", (1.0,) * 4, (1.0,) * 4))


def test_the_tokens_of_an_endpoint_that_does_not_report_them_are_unknown() -> None:
    unknown = tokens_by_round(RowTokens("m", (1, 1, 1, 1, None), (1,) * 5))
    assert (unknown.reported, unknown.input, unknown.output) == (False, (), ())
    known = Tokens("m", (1.0,) * 5, (1.0,) * 5)
    assert known.reported


@pytest.mark.parametrize("prices", [(-1.0, 2.0), (1.0, math.nan)])
def test_invalid_prices_of_tokens_are_refused(prices: tuple[float, float]) -> None:
    tokens = tokens_by_round(RowTokens("m", (10,) * 10, (1,) * 10, prices=(1.0, 2.0)))
    assert tokens.prices == (1.0, 2.0)
    with pytest.raises(ValueError, match="prices of tokens"):
        replace(tokens, prices=prices)
