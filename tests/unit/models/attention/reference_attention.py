"""A reference of torch's variable-length flash attention, whose kernel needs a GPU."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def reference_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `torch.nn.attention.varlen.varlen_attn` sequence by sequence, and check what its
    kernel requires."""
    bounds = cu_seq_q.tolist()
    assert cu_seq_k.tolist() == bounds
    assert cu_seq_q.dtype == torch.int32
    assert (bounds[0], bounds[-1]) == (0, len(query))
    assert max_q == max_k == max(end - begin for begin, end in pairwise(bounds))
    assert window_size == (-1, 0)  # causal
    assert query.dtype == key.dtype == value.dtype
    assert enable_gqa == (query.shape[1] != key.shape[1])
    outputs = []
    for begin, end in pairwise(bounds):
        q, k, v = (states[begin:end].transpose(0, 1) for states in (query, key, value))
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa
            )
        )
    return torch.cat(outputs, dim=1).transpose(0, 1)
