"""Attention over each request's own keys gives the same results as masked attention over all
keys."""

from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.utils import build_attention_mask

from tailorbird.models.attention import continuous_batching_attention
from tailorbird.models.attention.continuous_batching_attention import _attention
from tailorbird.models.attention.transformers_private import sdpa_attention_forward

HEADS, KEY_HEADS, WIDTH = 6, 2, 8
MODULE: Any = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS)


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute few requests like many."""
    monkeypatch.setattr(continuous_batching_attention, "MAX_TOGETHER", 0)


Requests = list[tuple[int, int]]
"""Number of query tokens and number of keys of each request."""


def packed_pass(
    requests: Requests, *, window: int = 1
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Return query, key, value and mask of a pass of continuous batching, and its keyword
    arguments."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = ([0, *accumulate(column)] for column in zip(*requests, strict=True))
    shapes = (HEADS, queries[-1]), (KEY_HEADS, keys[-1]), (KEY_HEADS, keys[-1])
    states = [torch.randn(1, heads, length, WIDTH, generator=generator) for heads, length in shapes]
    mask = torch.full((1, 1, queries[-1], keys[-1]), torch.finfo(torch.float32).min)
    build_attention_mask(mask, queries, keys, sliding_window=window)
    options = {
        "cu_seq_lens_q": torch.tensor(queries),
        "cu_seq_lens_k": torch.tensor(keys),
        "write_index": [],
    }
    return (*states, mask), options


@pytest.mark.parametrize(
    "requests",
    [
        [(1, 7), (1, 9), (1, 5)],
        [(1, 3), (1, 90), (1, 4), (1, 31)],
        [(4, 4), (1, 9), (3, 8), (1, 1)],
    ],
)
@pytest.mark.parametrize("window", [1, 4])
def test_results_equal_masked_attention_over_all_keys(requests: Requests, window: int) -> None:
    states, options = packed_pass(requests, window=window)
    separate, _ = _attention(MODULE, *states, scaling=0.3, **options)
    together, _ = sdpa_attention_forward(MODULE, *states, scaling=0.3)
    torch.testing.assert_close(separate, together, rtol=1e-5, atol=1e-5)


BIAS = torch.randn(1, HEADS, 4, 16)


@pytest.mark.parametrize("case", ["few", "outside", "shared keys", "position bias"])
def test_other_passes_use_masked_attention_over_all_keys(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, options = packed_pass([(1, 7), (3, 9)])
    if case == "few":
        monkeypatch.setattr(continuous_batching_attention, "MAX_TOGETHER", 2)
    elif case == "outside":
        options = {}
    elif case == "shared keys":  # of another layer
        options["cu_seq_lens_k"] = {"full_attention": options["cu_seq_lens_k"]}
    else:
        options["position_bias"] = BIAS
    bias = options.get("position_bias")
    together, _ = sdpa_attention_forward(MODULE, *states, scaling=0.3, position_bias=bias)
    assert torch.equal(_attention(MODULE, *states, scaling=0.3, **options)[0], together)
