"""Tests of the measured resources: rounds, tokens, and shares of the rows."""

import math
from typing import Any

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

ONES = (1.0,) * 5


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_amounts_that_are_negative_or_not_finite_are_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="seconds of training"):
        TrainingUsage(cpu_s=amount)
    with pytest.raises(ValueError, match="CPU-seconds"):
        ServingUsage((1.0,) * 4 + (amount,))
    with pytest.raises(ValueError, match="output tokens"):
        Tokens("m", ONES, (1.0,) * 4 + (amount,))
    with pytest.raises(ValueError, match="prices of tokens"):
        Tokens("m", ONES, ONES, prices=(1.0, amount))


@pytest.mark.parametrize(
    ("cpu_s", "gpu_s", "tokens"),
    [
        (ONES[:4], None, None),
        ((1.0, 1.0, 1.0, 1.0, 0.0), None, None),
        (ONES, ONES[:4], None),
        (ONES, None, (ONES, ONES[:4])),
        (ONES, None, (ONES[:4], ONES[:4])),
    ],
)
def test_all_resources_are_positive_in_the_same_five_or_more_rounds(
    cpu_s: tuple[float, ...], gpu_s: tuple[float, ...] | None, tokens: Any
) -> None:
    with pytest.raises(ValueError, match=r"rounds|CPU-seconds"):
        ServingUsage(cpu_s, gpu_s, tokens and Tokens("m", *tokens))


def test_the_tokens_of_a_round_are_those_of_a_part_of_the_rows() -> None:
    rows = RowTokens("m", (10,) * 6 + (20,) * 4, (1, 2) * 5, prices=(1.0, 2.0))
    tokens = tokens_by_round(rows)
    assert tokens.input == (10_000, 10_000, 10_000, 20_000, 20_000)
    assert tokens.output == (1_500, 1_500, 1_500, 1_500, 1_500)
    assert (tokens.endpoint, tokens.prices, tokens.reported) == ("m", (1.0, 2.0), True)
    assert (
        tokens_by_round(RowTokens("m", (1, 3), (1, 1))).input == (2_000,) * 5
    )  # fewer rows than rounds


def test_rows_that_an_endpoint_does_not_answer_have_no_tokens() -> None:
    answered = np.array([False, True] * 5)
    rows = RowTokens("m", (None, 30) * 5, (None, 2) * 5)
    assert tokens_by_round(rows, answered=answered) == Tokens("m", (15_000,) * 5, (1_000,) * 5)
    unknown = tokens_by_round(rows, answered=~answered)
    assert (unknown.reported, unknown.input, unknown.output) == (False, (), ())


def test_the_share_of_a_round_counts_rows_with_their_lengths() -> None:
    answered = np.array([True, False] * 4 + [True, True])
    assert shares_by_round(answered, lengths=np.ones(10)) == (0.5, 0.5, 0.5, 0.5, 1.0)
    lengths = np.array([30.0, 10.0] * 4 + [30.0, 10.0])
    assert shares_by_round(answered, lengths=lengths) == (0.75, 0.75, 0.75, 0.75, 1.0)
    assert shares_by_round(answered[-3:], lengths=np.ones(3)) == (2 / 3,) * 5
    assert shares_by_round(np.ones(10, dtype=bool), lengths=np.arange(10.0)) == (1.0,) * 5
