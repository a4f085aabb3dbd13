"""Attention of encoders over padded rows, whose mask is made without a read of the device."""

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from tailorbird.models.attention.transformers_private import (
    attention_implementation,
    can_set_attention_implementation,
    sdpa_attention_forward,
    sdpa_mask,
)

PADDED = "padded_sdpa"
"""Name in transformers, which loads its own flash kernels for any name with `flash`."""


def use_padded_attention(encoder: Any) -> None:
    """Let a transformers model use the `sdpa` attention with a mask that is omitted only if the
    caller passes none.

    By default, transformers also omits a mask without padding. It reads the mask for this in each
    forward pass, and the read waits for the GPU. A model with an attention of its own keeps it.
    """
    if attention_implementation(encoder.config) == "sdpa" and can_set_attention_implementation(
        encoder
    ):
        AttentionInterface.register(PADDED, sdpa_attention_forward)
        AttentionMaskInterface.register(PADDED, _mask)
        encoder.set_attn_implementation(PADDED)


def _mask(*, attention_mask: Tensor | None, **options: Any) -> Tensor | None:
    """Return the mask [B, 1, T, T] of the `sdpa` attention for a padding mask [B, T], as a mask
    function."""
    if attention_mask is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, **options)
    return mask
