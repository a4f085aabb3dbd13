"""Pool the hidden states of an encoder to one embedding per row."""

import torch
from torch import Tensor, nn

from tailorbird.registry.pooling import Pooling


def pool(hidden: Tensor, attention_mask: Tensor | None, *, pooling: Pooling) -> Tensor:
    """Return the embeddings of rows: [B, T, D], [B, T] -> [B, D].

    Rows are padded on the right; no mask means no padding. The result has the dtype of the hidden
    states, or fp32 if it is normalized.
    """
    pooled = _pooled(hidden, attention_mask, pooling=pooling)
    if pooling.normalize:
        return nn.functional.normalize(pooled.float(), dim=-1)
    return pooled


def _pooled(hidden: Tensor, attention_mask: Tensor | None, *, pooling: Pooling) -> Tensor:
    if attention_mask is None:
        attention_mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    mask = attention_mask
    if pooling.num_skipped:
        mask = mask * (positions >= pooling.num_skipped)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    match pooling.mode:
        case "mean":
            return _mean(hidden, mask)
        case "mean_sqrt_len_tokens":
            return _mean(hidden, mask) * mask.sum(1, keepdim=True).to(hidden.dtype).sqrt()
        case "weightedmean":  # in fp32, because bf16 rounds positions above 256
            return _mean(hidden.float(), mask * (positions + 1)).to(hidden.dtype)
        case "max":
            return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
        case "cls":
            return hidden[rows, mask.to(torch.int32).argmax(1)]
        case "lasttoken":
            return hidden[rows, attention_mask.sum(1) - 1]


def _mean(hidden: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over the tokens: [B, T, D], [B, T] -> [B, D]."""
    factors = weights.unsqueeze(-1).to(hidden.dtype)
    return (hidden * factors).sum(1) / factors.sum(1).clamp(min=1)
