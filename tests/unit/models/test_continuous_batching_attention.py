"""Attention of requests apart against transformers' own, through a mask over all keys."""

from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.utils import build_attention_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tailorbird.models.continuous_batching_attention import _alike, _attention

HEADS, KEY_HEADS, WIDTH = 6, 2, 8
MODULE: Any = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS)

Requests = list[tuple[int, int]]
"""Tokens that each asks for, and keys that it has."""


def a_pass(requests: Requests, *, window: int = 1) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Query, key, value and mask as continuous batching has them, and what comes beside."""
    chance = torch.Generator().manual_seed(0)
    queries, keys = ([0, *accumulate(column)] for column in zip(*requests, strict=True))
    shapes = (HEADS, queries[-1]), (KEY_HEADS, keys[-1]), (KEY_HEADS, keys[-1])
    states = [torch.randn(1, heads, length, WIDTH, generator=chance) for heads, length in shapes]
    mask = torch.full((1, 1, queries[-1], keys[-1]), torch.finfo(torch.float32).min)
    build_attention_mask(mask, queries, keys, sliding_window=window)
    beside = {"cu_seq_lens_q": torch.tensor(queries), "cu_seq_lens_k": torch.tensor(keys), "write_index": []}
    return (*states, mask), beside


@pytest.mark.parametrize(
    "requests",
    [
        [(1, 7)],
        [(1, 7), (1, 9), (1, 5)],
        [(1, 3), (1, 90), (1, 4), (1, 31)],
        [(4, 4), (1, 9), (3, 8), (1, 1)],
        [(5, 5), (2, 2)],
    ],
)
@pytest.mark.parametrize("window", [1, 4])
def test_requests_apart_attend_as_they_do_through_a_mask_over_all(requests: Requests, window: int) -> None:
    states, beside = a_pass(requests, window=window)
    apart, _ = _attention(MODULE, *states, scaling=0.3, **beside)
    together, _ = sdpa_attention_forward(MODULE, *states, scaling=0.3)
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


def test_what_another_asks_beside_it_moves_no_request() -> None:
    states, beside = a_pass([(1, 9), (1, 7), (3, 8)])
    before, _ = _attention(MODULE, *states, scaling=0.3, **beside)
    query, key, value, mask = states
    for tokens, keys in ((slice(0, 1), slice(0, 9)), (slice(2, 5), slice(16, 24))):
        query[:, :, tokens], key[:, :, keys], value[:, :, keys] = 9.0, torch.nan, torch.nan
    after, _ = _attention(MODULE, query, key, value, mask, scaling=0.3, **beside)
    assert torch.equal(before[:, 1], after[:, 1])


def test_outside_continuous_batching_it_is_transformers_own() -> None:
    states, _ = a_pass([(1, 7), (3, 9)])
    own, _ = sdpa_attention_forward(MODULE, *states, scaling=0.3)
    assert torch.equal(_attention(MODULE, *states, scaling=0.3)[0], own)


def test_a_layer_that_takes_another_s_keys_attends_through_the_mask() -> None:
    states, beside = a_pass([(1, 7), (3, 9)])
    own, _ = sdpa_attention_forward(MODULE, *states, scaling=0.3)
    shared = beside | {"cu_seq_lens_k": {"full_attention": beside["cu_seq_lens_k"]}}
    assert torch.equal(_attention(MODULE, *states, scaling=0.3, **shared)[0], own)


def test_a_bias_by_place_is_left_to_transformers() -> None:
    states, beside = a_pass([(1, 7), (3, 9)])
    bias = torch.randn(1, HEADS, 4, 16)
    own, _ = sdpa_attention_forward(MODULE, *states, scaling=0.3, position_bias=bias)
    assert torch.equal(_attention(MODULE, *states, scaling=0.3, position_bias=bias, **beside)[0], own)


def test_a_short_request_is_not_drawn_out_to_a_long_one() -> None:
    queries, keys = (0, *accumulate([1] * 4)), (0, *accumulate([3, 90, 4, 31]))
    lengths = [(places.shape, int((~beyond).sum())) for _, places, beyond in _alike(queries, keys)]
    assert lengths == [((2, 4), 7), ((1, 31), 31), ((1, 90), 90)]
