"""Sampling of tokens by temperature, top_p and seed, independently for each request of a pass."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serving.engines.sampling import NUM_LIKELY, Sampler, sample_token

SHARES = np.array([0.5, 0.125, 0.25, 0.125])
LOGITS = torch.log(torch.tensor(SHARES))
SQUARES = SHARES**2


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, SHARES),
        (0.5, 1.0, SQUARES / SQUARES.sum()),
        (0.001, 1.0, [1, 0, 0, 0]),
        (1.0, 0.7, [2 / 3, 0, 1 / 3, 0]),  # the fewest tokens that reach it
        (1.0, 0.01, [1, 0, 0, 0]),
    ],
)
def test_tokens_have_the_probabilities_of_the_temperature_and_of_top_p(
    temperature: float, top_p: float, expected: Any
) -> None:
    uniforms = ((np.arange(4000) + 0.5) / 4000).tolist()
    sampled = [
        sample_token(LOGITS, temperature=temperature, top_p=top_p, uniform=uniform)
        for uniform in uniforms
    ]
    shares = np.bincount(sampled, minlength=4) / len(sampled)
    np.testing.assert_allclose(shares, expected, atol=1e-3)


def test_top_p_can_include_more_tokens_than_the_first_search() -> None:
    flat = torch.zeros(4 * NUM_LIKELY)
    uniforms = ((np.arange(len(flat)) + 0.5) / len(flat)).tolist()
    sampled = {
        sample_token(flat, temperature=1.0, top_p=0.5, uniform=uniform) for uniform in uniforms
    }
    assert len(sampled) == 2 * NUM_LIKELY


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (float(np.nextafter(1.0, 0.0)), 2)])
def test_extreme_random_numbers_give_tokens_with_positive_probability(
    uniform: float, token: int
) -> None:
    logits = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf])
    assert sample_token(logits, temperature=1.0, top_p=1.0, uniform=uniform) == token


def test_the_positions_of_a_sampled_answer_are_independent() -> None:
    options = {"temperature": 2.0, "top_p": 1.0, "seed": 7}
    sampler = Sampler()
    states = [
        SimpleNamespace(
            request_id=str(row),
            logit_processor_kwargs=options,
            initial_tokens=[0] * 5,
            generated_tokens=[0] * row,
        )
        for row in range(12)
    ]
    args = sampler.prepare_tensor_args([SimpleNamespace(state=state) for state in states])
    scores: torch.Tensor = sampler(LOGITS.repeat(12, 1), args)
    assert len(set(scores.argmax(-1).tolist())) > 1
