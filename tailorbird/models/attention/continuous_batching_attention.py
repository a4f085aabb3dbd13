"""Attention for continuous batching on CPU, which computes each request only over its own keys."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from tailorbird.models.attention.transformers_private import Bounds, request_bounds, sdpa_attention_forward


def register_request_attention() -> None:
    """Replace the `sdpa` attention of transformers in this process, to speed up continuous batching on CPU.

    Transformers computes the attention of each request over the keys of all requests and masks the keys of the others.
    For n requests, this takes n * n blocks instead of n. Results differ only by rounding. Outside continuous batching,
    nothing changes.
    """
    AttentionInterface.register("sdpa", _attention)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Return the attention output.

    Shapes: [1, H, Q, D], [1, K, KV, D], [1, K, KV, D], [1, 1, Q, KV] -> [1, Q, H, D], where H is a multiple of K.
    """
    is_masked = attention_mask is not None and attention_mask.shape[1] == 1
    # On a GPU, reading the bounds would wait for all work before.
    bounds = request_bounds(options) if is_masked and query.device.type == "cpu" else None
    if bounds is None or attention_mask is None:
        output: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return output, None
    queries, keys = bounds
    result = query.new_empty((1, query.shape[2], query.shape[1], value.shape[-1]))
    for (begin, end), (first, last) in zip(pairwise(queries), pairwise(keys), strict=True):
        if end - begin > 1:
            states = query[:, :, begin:end], key[:, :, first:last], value[:, :, first:last]
            mask = attention_mask[:, :, begin:end, first:last]
            result[:, begin:end], _ = sdpa_attention_forward(module, *states, mask, **options)
    for rows, indices, padding in _groups(queries, keys):
        mask = attention_mask[0, 0].index_select(0, rows).gather(1, indices).masked_fill_(padding, -torch.inf)
        decoding = query[0].index_select(1, rows).transpose(0, 1).unsqueeze(2)
        states = decoding, _gather(key, indices), _gather(value, indices)
        answers, _ = sdpa_attention_forward(module, *states, mask[:, None, None], **options)
        result[0, rows] = answers[:, 0]
    return result, None


def _gather(states: Tensor, indices: Tensor) -> Tensor:
    """Return the states at the indices of each request: [1, K, KV, D], [R, L] -> [R, K, L, D]."""
    gathered = states[0].transpose(0, 1).index_select(0, indices.flatten())
    return gathered.view(*indices.shape, *gathered.shape[1:]).transpose(1, 2)


@lru_cache(maxsize=4)  # all layers of a pass have the same bounds
def _groups(queries: Bounds, keys: Bounds) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
    """Group the requests that decode one token by their number of keys, to limit padding.

    Within a group, no request has more than twice as many keys as another. Return for each group its query rows [R],
    key indices [R, L] and padding mask [R, L].
    """
    bounds = zip(pairwise(queries), pairwise(keys), strict=True)
    decoding = [(last - first, begin, first) for (begin, end), (first, last) in bounds if end - begin == 1]
    groups: list[list[tuple[int, int, int]]] = []
    for request in sorted(decoding):
        if not groups or request[0] > 2 * groups[-1][0][0]:
            groups.append([])
        groups[-1].append(request)
    return [_padded(group) for group in groups]


def _padded(requests: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    lengths, rows, firsts = (torch.tensor(column) for column in zip(*requests, strict=True))
    steps = torch.arange(int(lengths.max()))
    padding = steps >= lengths[:, None]
    return rows, firsts[:, None] + steps.masked_fill(padding, 0), padding
