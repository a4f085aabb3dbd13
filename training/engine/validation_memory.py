"""The forward passes in which a classifier is validated: how many rows they have, and an estimate of their memory."""

from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import CPU_ROWS, GPU_ROWS, ModelShape
from training.engine.worker_memory import Batch

VALIDATION_TOKENS = 16_384  # in a forward pass on a GPU, whose memory also holds the states of the training
ROTATION = 16
"""Bytes for each value of a token while its queries and keys are rotated: the fp32 factors and their products."""


def validated_rows(max_length: int, *, on_gpu: bool) -> int:
    """Return the largest number of rows of a pass if they have `max_length` tokens."""
    return max(1, min(GPU_ROWS, VALIDATION_TOKENS // max_length)) if on_gpu else CPU_ROWS


def forward_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> int:
    """Return the bytes of the activations of a pass, which computes no gradients.

    The pass needs the most in a layer: in its attention, with a copy of the mask in the dtype of the computation, or in
    its feed-forward network. An adapter has an input or an output of its own there, in the dtype of its parameters.
    """
    num_rows = validated_rows(batch.max_length, on_gpu=config.gpus_per_worker > 0)
    num_tokens = min(num_rows, batch.validation_rows or num_rows) * batch.max_length
    residual = 2 if config.parameter_dtype == "bf16" else 4
    computed = 2 if batch.autocast else residual
    attention = (4 * residual + 3 * computed + (ROTATION if shape.rotary else 0)) * shape.hidden
    attention += computed * batch.max_length
    wide = 2 * computed + (residual if config.method == "lora" else computed if shape.gated else 0)
    network = 3 * residual * shape.hidden + wide * shape.intermediate
    return num_tokens * (batch.max_length + max(attention, network))
