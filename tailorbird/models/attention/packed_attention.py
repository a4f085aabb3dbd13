"""Attention over packed rows: variable-length flash attention, FlexAttention, or a dense mask.

A dense mask [B, 1, T, T] rules out flash kernels, and takes memory and time for pairs of tokens of different
conversations. The other two compute only the pairs within a conversation. They need a GPU.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface

from tailorbird.models.attention.transformers_private import (
    attention_implementation,
    flash_restriction,
    flex_attention_forward,
    set_attention_implementation,
    supports_flex_attention,
)
from tailorbird.models.errors import ModelError

Attention = Literal["flash", "flex", "dense"]
FLASH, FLEX = "packed_varlen", "packed_flex_attention"
"""Names in transformers, which loads its own flash kernels for any name with `flash`, and checks for any name with
`flex_attention` that torch has it."""
FLASH_DTYPES = (torch.bfloat16, torch.float16)
MAX_FLASH_HEAD, MIN_FLASH_CAPABILITY = 256, (8, 0)  # limits of torch's flash attention


def choose_attention(
    requested: Literal["auto", "flash", "flex", "dense"], *, lm: Any, device: str, dtype: torch.dtype
) -> Attention:
    """Return the attention to train `lm` with, where `dtype` is the dtype of computation.

    `auto` selects the first of flash, flex and dense that the model and the device support. Raises ModelError if the
    requested one is not supported.
    """
    obstacles = {"flash": _flash_obstacle(lm, device=device, dtype=dtype), "flex": _flex_obstacle(lm, device=device)}
    candidates: tuple[Attention, ...] = ("flash", "flex", "dense") if requested == "auto" else (requested,)
    for name in candidates:
        if obstacles.get(name) is None:
            return name
    raise ModelError(
        f"training.attention {requested!r} cannot be used: {obstacles[requested]}; remove it, so that the attention is "
        "chosen automatically"
    )


def _flash_obstacle(lm: Any, *, device: str, dtype: torch.dtype) -> str | None:
    """Return the reason why flash attention cannot be used, or None."""
    if not device.startswith("cuda"):
        return "it needs a GPU (training.gpus_per_worker)"
    if torch.cuda.get_device_capability() < MIN_FLASH_CAPABILITY:
        return "the GPU is older than NVIDIA Ampere"
    if dtype not in FLASH_DTYPES:
        return f"it computes in bfloat16 or float16, not in {dtype}"
    return _dropout_obstacle(lm) or flash_restriction(lm, max_head_size=MAX_FLASH_HEAD)


def _flex_obstacle(lm: Any, *, device: str) -> str | None:
    """Return the reason why FlexAttention cannot be used, or None."""
    if not device.startswith("cuda"):
        return "it needs a GPU (training.gpus_per_worker), because torch has no backward pass of it on CPUs"
    if not supports_flex_attention(lm):
        return f"models of type {lm.config.model_type} do not support FlexAttention"
    return _dropout_obstacle(lm)


def _dropout_obstacle(lm: Any) -> str | None:
    share = getattr(lm.config.get_text_config(), "attention_dropout", 0.0) or 0.0
    return f"it has no dropout, but attention_dropout is {share}" if share else None


def set_attention(lm: Any, attention: Attention, *, dense: str) -> None:
    """Set the attention of a transformers model; `dense` is its own implementation. Raises ModelError if refused."""
    if attention == "flash":
        AttentionInterface.register(FLASH, _flash_attention())
    if attention == "flex":
        AttentionInterface.register(FLEX, flex_attention)
    name = {"flash": FLASH, "flex": FLEX, "dense": dense}[attention]
    set_attention_implementation(lm, name)
    if attention_implementation(lm.config) != name:
        raise ModelError(f"a model of type {lm.config.model_type} has a fixed attention; set training.attention: dense")


def attention_name(lm: Any) -> Attention:
    """Return the attention that a transformers model uses for packed rows."""
    name = attention_implementation(lm.config)
    return "flash" if name == FLASH else "flex" if name == FLEX else "dense"


def attention_inputs(lm: Any, conversation_ids: Tensor, bounds: Tensor, *, longest: int) -> dict[str, Any]:
    """Return the arguments of a transformers model that restrict attention to each conversation.

    `conversation_ids` [B, T], `bounds` [S + 1] and `longest` are those of `PackedRows`.
    """
    attention = attention_name(lm)
    if attention == "flash":
        lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
        return {"attention_mask": None, **lengths}
    if attention == "flex":
        return {"attention_mask": block_mask(conversation_ids)}
    mask = _dense_mask(conversation_ids)
    if attention_implementation(lm.config) == "eager":  # eager attention adds the mask to the scores
        mask = torch.zeros_like(mask, dtype=lm.dtype).masked_fill(~mask, torch.finfo(lm.dtype).min)
    return {"attention_mask": mask}


def _dense_mask(conversation_ids: Tensor) -> Tensor:
    """Return the attention mask [B, 1, T, T]: causal within a conversation; padding attends to padding."""
    same = conversation_ids[:, None, :, None] == conversation_ids[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()


def block_mask(conversation_ids: Tensor) -> BlockMask:
    """Return the same mask as blocks, without the dense one if it is compiled (on a GPU)."""

    def same_conversation(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (conversation_ids[row, query] == conversation_ids[row, key])

    num_rows, width = conversation_ids.shape
    device = conversation_ids.device
    return create_block_mask(
        same_conversation, num_rows, None, width, width, device=device, _compile=device.type == "cuda"
    )


def _varlen_kernel() -> Callable[..., Any]:
    """Return torch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _flash_attention() -> Callable[..., tuple[Tensor, None]]:
    """Return `flash_attention` with the installed kernel, which is inspected once and not in each layer."""
    kernel = _varlen_kernel()
    return partial(flash_attention, kernel=kernel, grouped="enable_gqa" in inspect.signature(kernel).parameters)


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
    """Return the causal attention output within each conversation, as an attention function of transformers.

    Shapes: [B, H, T, D], [B, K, T, D], [B, K, T, D] -> [B, T, H, D], where H is a multiple of K. `grouped` tells if
    `kernel` accepts them as they are. A sliding window is ignored, because no conversation is longer than it (see
    `ChatData.longest_row`).
    """
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    assert attention_mask is None
    if unsupported or dropout:
        raise ModelError(f"flash attention has no {', '.join(unsupported) or 'dropout'}; set training.attention: flex")
    groups: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if grouped:
            groups = {"enable_gqa": True}
        else:  # torch 2.11
            key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    flat = [states.transpose(1, 2).flatten(0, 1) for states in _in_one_dtype(query, key, value)]
    output = kernel(
        *flat, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0), **groups
    )
    return output.unflatten(0, (query.shape[0], query.shape[2])), None


def flex_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: BlockMask, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the output of FlexAttention in the dtype of autocast, as an attention function of transformers."""
    output: tuple[Tensor, Tensor | None] = flex_attention_forward(
        module, *_in_one_dtype(query, key, value), attention_mask, **options
    )
    return output


def _in_one_dtype(*states: Tensor) -> tuple[Tensor, ...]:
    """Return the states in the dtype of autocast, or else in that of the last of them.

    With autocast, rotary embeddings make queries and keys fp32. FlexAttention of older torch versions rejects that
    (pytorch#165468) or computes in fp32.
    """
    kind = states[-1].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states[-1].dtype
    return tuple(state.to(dtype) for state in states)
