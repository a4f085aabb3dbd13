"""Sizes of a model for memory estimates. Does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a pretrained model."""

    num_parameters: int
    num_linear: int  # parameters in the matrices of linear layers that no embedding shares
    num_linear_ends: int
    """Input plus output features of all linear layers. An adapter of rank r has r times as many parameters."""
    hidden: int
    intermediate: int  # width of a layer's feed-forward network
    num_layers: int
    num_heads: int
    vocabulary: int
    gated: bool = False  # true if the feed-forward network is gated, as in Llama
    attention_dropout: float = 0.0
    kv_width: int | None = None  # width of a layer's keys, and of its values; None if it is `hidden`
    stored_bf16: bool = False  # true if most of its weights are stored in bfloat16
