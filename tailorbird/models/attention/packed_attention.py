"""Attention over packed rows: variable-length flash attention, or a dense mask.

A dense mask [B, 1, T, T] rules out flash kernels, and takes memory and time for pairs of tokens of
different conversations. Flash attention computes only the pairs within a conversation. It needs a
GPU.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface

from tailorbird.models.attention.transformers_private import (
    attention_implementation,
    create_causal_mask,
    flash_restriction,
    packed_sequence_mask_function,
)
from tailorbird.models.errors import ModelError

Attention = Literal["flash", "dense"]
FLASH = "packed_varlen"
"""Name in transformers, which loads its own flash kernels for any name with `flash`."""
FLASH_DTYPES = (torch.bfloat16, torch.float16)
# limits of torch's flash attention
MAX_FLASH_HEAD = 256
MIN_FLASH_CAPABILITY = (8, 0)


def choose_attention(lm: Any, *, device: str, dtype: torch.dtype) -> Attention:
    """Return flash attention if `lm`, the device and the dtype of computation support it, else
    dense."""
    is_supported = (
        device.startswith("cuda")
        and torch.cuda.get_device_capability() >= MIN_FLASH_CAPABILITY
        and dtype in FLASH_DTYPES
        and not getattr(lm.config.get_text_config(), "attention_dropout", 0.0)
        and flash_restriction(lm, max_head_size=MAX_FLASH_HEAD) is None
    )
    return "flash" if is_supported else "dense"


def set_attention(lm: Any, attention: Attention, *, dense: str) -> None:
    """Set the attention of a transformers model; `dense` is its own implementation."""
    if attention == "flash":
        AttentionInterface.register(FLASH, _flash_attention())
    lm.set_attn_implementation(FLASH if attention == "flash" else dense)


def attention_name(lm: Any) -> Attention:
    """Return the attention that a transformers model uses for packed rows."""
    if attention_implementation(lm.config) == FLASH:
        return "flash"
    return "dense"


def attention_inputs(
    lm: Any, position_ids: Tensor, bounds: Tensor, *, longest: int
) -> dict[str, Any]:
    """Return the arguments of a transformers model that restrict attention to each conversation.

    `position_ids` [B, T], `bounds` [S + 1] and `longest` are those of `PackedRows`.
    """
    if attention_name(lm) == "flash":
        return {
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    # A model would make this mask from `position_ids` itself, but it would read a value of them,
    # which waits for a GPU, and some models (gpt-oss) do not pass them on to the mask.
    states = torch.empty(*position_ids.shape, 0, dtype=lm.dtype, device=position_ids.device)
    same_conversation = packed_sequence_mask_function((position_ids == 0).cumsum(-1))
    config = lm.config.get_text_config()
    return {
        "attention_mask": create_causal_mask(
            config, states, None, None, and_mask_function=same_conversation
        )
    }


def _varlen_kernel() -> Callable[..., Any]:
    """Return torch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _flash_attention() -> Callable[..., tuple[Tensor, None]]:
    """Return `flash_attention` with the installed kernel, which is inspected once and not in each
    layer."""
    kernel = _varlen_kernel()
    return partial(
        flash_attention, kernel=kernel, grouped="enable_gqa" in inspect.signature(kernel).parameters
    )


def flash_attention(
    module: Any,  # noqa: ARG001  part of the interface
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kernel: Callable[..., Any],
    grouped: bool,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the causal attention output within each conversation, as an attention function of
    transformers.

    Shapes: [B, H, T, D], [B, K, T, D], [B, K, T, D] -> [B, T, H, D], where H is a multiple of K.
    `grouped` tells if `kernel` accepts them as they are. A sliding window is ignored, because no
    conversation is longer than it (see `ChatData.longest_row`).
    """
    unsupported = [
        name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None
    ]
    assert attention_mask is None
    if unsupported or dropout:
        raise ModelError(
            f"flash attention has no {', '.join(unsupported) or 'dropout'}; choose another base "
            "model"
        )
    groups: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if grouped:
            groups = {"enable_gqa": True}
        else:  # torch 2.11
            key, value = (
                states.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
                for states in (key, value)
            )
    flat = [states.transpose(1, 2).flatten(0, 1) for states in _in_one_dtype(query, key, value)]
    output = kernel(
        *flat,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),
        **groups,
    )
    return output.unflatten(0, (query.shape[0], query.shape[2])), None


def _in_one_dtype(*states: Tensor) -> tuple[Tensor, ...]:
    """Return the states in the dtype of autocast, or else in that of the last of them.

    With autocast, rotary embeddings make queries and keys fp32.
    """
    kind = states[-1].device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = states[-1].dtype
    return tuple(state.to(dtype) for state in states)
