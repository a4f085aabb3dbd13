"""Sizes of a model for memory estimates. Does not import torch."""

from dataclasses import dataclass

CHUNK_LOGITS = 1 << 27
"""Logits that a loss computes at a time, for example those of 1,046 tokens of Llama 3, which take
up to 1.75 GiB."""

CPU_ROWS = 64  # maximum number of rows of a classifier's forward pass on CPU
GPU_ROWS = 1024  # and on a GPU; an estimate


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a pretrained model."""

    num_parameters: int
    num_linear: int  # parameters in the matrices of linear layers that no embedding shares
    num_linear_ends: int
    """Input plus output features of all linear layers. An adapter of rank r has r times as many
    parameters."""
    hidden: int
    intermediate: int  # width of a layer's feed-forward network
    num_layers: int
    num_heads: int
    vocabulary: int
    gated: bool = False  # true if the feed-forward network is gated, as in Llama
    rotary: bool = False  # true if queries and keys are rotated by their positions
    attention_dropout: float = 0.0
    kv_width: int | None = (
        None  # width of a layer's keys, and of its values; None if it is `hidden`
    )
    stored_bf16: bool = False  # true if most of its weights are stored in bfloat16
    needs_all_logits: bool = False  # true if its loss cannot be computed in chunks of the logits


def rows_of_loss_chunk(vocabulary: int) -> int:
    """Return the number of tokens whose logits a loss computes at a time."""
    return max(1, CHUNK_LOGITS // vocabulary)
