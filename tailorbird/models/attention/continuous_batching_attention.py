"""Attention for continuous batching on CPU, which computes each request only over its own keys."""

from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from tailorbird.models.attention.transformers_private import request_bounds, sdpa_attention_forward

MAX_TOGETHER = 8
"""Number of requests up to which masked attention over all keys takes no longer. Measured on one
core, with 50 keys per request: 0.9 times the time for 8 requests, 3.4 times for 16."""


def register_request_attention() -> None:
    """Replace the `sdpa` attention of transformers in this process, to speed up continuous batching
    on CPU.

    Transformers computes the attention of each request over the keys of all requests and masks the
    keys of the others. For n requests, this takes n * n blocks instead of n. Measured with 10
    layers of SmolLM2 and prompts of 60 tokens: 0.8 times the time to answer 32 prompts, half of it
    for 100. Results differ only by rounding. Outside continuous batching, nothing changes.
    """
    AttentionInterface.register("sdpa", _attention)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output.

    Shapes: [1, H, Q, D], [1, K, KV, D], [1, K, KV, D], [1, 1, Q, KV] -> [1, Q, H, D], where H is a
    multiple of K.
    """
    is_masked = attention_mask is not None and attention_mask.shape[1] == 1
    # On a GPU, reading the bounds would wait for all work before.
    if is_masked and query.device.type == "cpu":
        bounds = request_bounds(options)
    else:
        bounds = None
    if bounds is None or attention_mask is None or len(bounds[0]) - 1 <= MAX_TOGETHER:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )[0]
        return output, None
    result = query.new_empty((1, query.shape[2], query.shape[1], value.shape[-1]))
    queries, keys = map(pairwise, bounds)
    for (begin, end), (first, last) in zip(queries, keys, strict=True):
        states = query[:, :, begin:end], key[:, :, first:last], value[:, :, first:last]
        mask = attention_mask[:, :, begin:end, first:last]
        result[:, begin:end], _ = sdpa_attention_forward(module, *states, mask, **options)
    return result, None
