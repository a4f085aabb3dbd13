"""A model's sizes, as arithmetic needs them: beside the model itself, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A pretrained model's sizes, as its configuration gives them; no weight is needed to know them."""

    num_parameters: int
    num_linear: int
    """Of these, in the matrices of linear layers, which autocast copies."""
    num_linear_ends: int
    """Inputs and outputs of all linear layers: an adapter of rank r has r times as many parameters."""
    hidden: int
    intermediate: int
    """Width of a layer's feed-forward part."""
    num_layers: int
    num_heads: int
    vocabulary: int
    gated: bool = False
    """Whether the feed-forward part has a gate beside it, as Llama's and its kin have."""
    attention_dropout: float = 0.0
