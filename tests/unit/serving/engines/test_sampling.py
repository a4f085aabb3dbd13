"""Sampling of tokens by temperature, top_p and seed, independently for each request of a pass."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from serving.engines.sampling import NUM_LIKELY, Sampler, sample_token

LOGITS = torch.log(torch.tensor([0.5, 0.125, 0.25, 0.125]))


def shares(*, temperature: float, top_p: float) -> list[float]:
    """Return the share of each token for evenly spaced random numbers."""
    uniforms = (np.arange(4000) + 0.5) / 4000
    sampled = [
        sample_token(LOGITS, temperature=temperature, top_p=top_p, uniform=float(uniform))
        for uniform in uniforms
    ]
    return [sampled.count(token) / len(sampled) for token in range(4)]


def test_tokens_are_sampled_with_their_probabilities() -> None:
    np.testing.assert_allclose(
        shares(temperature=1.0, top_p=1.0), [0.5, 0.125, 0.25, 0.125], atol=1e-3
    )


def test_a_low_temperature_sharpens_the_distribution() -> None:
    squares = np.array([0.5, 0.125, 0.25, 0.125]) ** 2
    np.testing.assert_allclose(
        shares(temperature=0.5, top_p=1.0), squares / squares.sum(), atol=1e-3
    )
    assert shares(temperature=0.001, top_p=1.0) == [1.0, 0.0, 0.0, 0.0]


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.7), [2 / 3, 0, 1 / 3, 0], atol=1e-3)
    assert shares(temperature=1.0, top_p=0.01) == [1.0, 0.0, 0.0, 0.0]


def test_top_p_can_include_more_tokens_than_the_first_search() -> None:
    flat = torch.zeros(4 * NUM_LIKELY)
    sampled = {
        sample_token(flat, temperature=1.0, top_p=0.5, uniform=(index + 0.5) / len(flat))
        for index in range(len(flat))
    }
    assert len(sampled) == 2 * NUM_LIKELY


def test_extreme_random_numbers_give_tokens_with_positive_probability() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf])
    assert sample_token(logits, temperature=1.0, top_p=1.0, uniform=0.0) == 1
    assert (
        sample_token(logits, temperature=1.0, top_p=1.0, uniform=float(np.nextafter(1.0, 0.0))) == 2
    )


def sampled_tokens(*options: dict[str, Any]) -> list[int]:
    """Return the argmax of each row after a pass in which every row has the same scores."""
    sampler = Sampler()
    states = [
        SimpleNamespace(
            state=SimpleNamespace(
                request_id=str(row),
                logit_processor_kwargs=kwargs,
                initial_tokens=[0] * 5,
                generated_tokens=[0] * row,
            )
        )
        for row, kwargs in enumerate(options)
    ]
    args = sampler.prepare_tensor_args(states)
    assert args.shape == (len(options),)
    scores: torch.Tensor = sampler(LOGITS.repeat(len(options), 1), args)
    return scores.argmax(-1).tolist()


def test_only_requests_with_a_temperature_are_sampled() -> None:
    options = {"temperature": 2.0, "top_p": 1.0}
    passes = [sampled_tokens({}, options | {"seed": seed}, {}) for seed in range(40)]
    assert {(first, last) for first, _, last in passes} == {(0, 0)}
    assert {sampled for _, sampled, _ in passes} == {0, 1, 2, 3}


def test_a_seed_is_reproducible_and_differs_by_position() -> None:
    options = {"temperature": 2.0, "top_p": 1.0, "seed": 7}
    assert sampled_tokens(*[options] * 12) == sampled_tokens(*[options] * 12)
    assert len(set(sampled_tokens(*[options] * 12))) > 1
