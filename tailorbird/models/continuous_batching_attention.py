"""Attention inside transformers' continuous batching on CPU: each request looks at its own keys alone."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Bounds = tuple[int, ...]
"""Where each request's tokens begin, one request behind the other, and where the last one's end."""


def register_request_attention() -> None:
    """Has models with transformers' attention `sdpa` attend so in this process while they batch continuously on CPU.

    Transformers lets each request see the keys of all, through a mask that leaves its own: n requests cost n times n
    parts where n would do. Answers are the same but for rounding, and outside continuous batching nothing changes.
    """
    AttentionInterface.register("sdpa", _attention)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """[1, H, Q, D], [1, K, KV, D], [1, K, KV, D], [1, 1, Q, KV] -> [1, Q, H, D]; H is a multiple of K."""
    if not _can_be_apart(query, attention_mask, options):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found
    assert attention_mask is not None
    queries, keys = (tuple(options[name].tolist()) for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    result = query.new_empty((1, query.shape[2], query.shape[1], value.shape[-1]))
    for (begin, end), (first, last) in zip(pairwise(queries), pairwise(keys), strict=True):
        if end - begin > 1:
            own = slice(begin, end), slice(first, last)
            result[:, begin:end], _ = sdpa_attention_forward(
                module,
                query[:, :, own[0]],
                key[:, :, own[1]],
                value[:, :, own[1]],
                attention_mask[:, :, own[0], own[1]],
                **options,
            )
    for rows, places, beyond in _alike(queries, keys):
        mask = attention_mask[0, 0].index_select(0, rows).gather(1, places).masked_fill_(beyond, -torch.inf)
        answers, _ = sdpa_attention_forward(
            module,
            query[0].index_select(1, rows).transpose(0, 1).unsqueeze(2),
            _at(key, places),
            _at(value, places),
            mask[:, None, None],
            **options,
        )
        result[0, rows] = answers[:, 0]
    return result, None


def _can_be_apart(query: torch.Tensor, attention_mask: torch.Tensor | None, options: dict[str, Any]) -> bool:
    """Not where a layer takes the keys of another, whose bounds come by kind of layer, nor under a bias by place."""
    return (
        "write_index" in options
        and query.device.type == "cpu"
        and attention_mask is not None
        and attention_mask.shape[1] == 1
        and isinstance(options["cu_seq_lens_k"], torch.Tensor)
        and options.get("position_bias") is None
    )


def _at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[1, K, KV, D] at [R, L] -> [R, K, L, D]."""
    found = states[0].transpose(0, 1).index_select(0, places.flatten())
    return found.view(*places.shape, *found.shape[1:]).transpose(1, 2)


@lru_cache(maxsize=4)  # all layers of a pass ask for the same
def _alike(queries: Bounds, keys: Bounds) -> Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Requests that go on by one token, together where none has more than twice the keys of another.

    Each part: places [R] of their queries, places [R, L] of their keys, and which of these [R, L] are none.
    """
    single = [
        (last - first, begin, first)
        for (begin, end), (first, last) in zip(pairwise(queries), pairwise(keys), strict=True)
        if end - begin == 1
    ]
    parts: list[list[tuple[int, int, int]]] = []
    for one in sorted(single):
        if not parts or one[0] > 2 * parts[-1][0][0]:
            parts.append([])
        parts[-1].append(one)
    return [_part(part) for part in parts]


def _part(requests: Sequence[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths, rows, firsts = (torch.tensor(column) for column in zip(*requests, strict=True))
    steps = torch.arange(int(lengths.max()))
    beyond = steps >= lengths[:, None]
    return rows, firsts[:, None] + steps.masked_fill(beyond, 0), beyond
