"""Estimate the memory of a training worker from its config and the shape of the model."""

from dataclasses import dataclass

from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import ModelShape

FP32, BF16 = 4, 2
RUNTIME_BYTES = 800 << 20
"""Host memory of a worker without the model: Python with Ray, torch, transformers and DeepSpeed, and the rows."""
DEVICE_RUNTIME_BYTES = 1 << 30
"""GPU memory of a worker without the model: CUDA context, kernels and rounding of the allocator. An assumption, not
measured on a GPU."""
LIVE_PARAMETERS, BUCKET_PARAMETERS = 1_000_000_000, 500_000_000
"""DeepSpeed's defaults: full parameters that stage 3 keeps at once, and gradients that it reduces at once."""
PACKED_TOKENS = 128  # minimum length of a packed row


@dataclass(frozen=True)
class Batch:
    """Properties of a batch that determine the memory of a forward pass."""

    max_length: int
    packed: bool = False  # conversations packed into one row, with logits at each token; else padded rows
    autocast: bool = False  # linear layers compute in bfloat16


@dataclass(frozen=True)
class WorkerMemory:
    """Peak memory of a worker in bytes, by purpose."""

    host: dict[str, int]
    device: dict[str, int]  # memory of its GPU; empty if it trains on CPU

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())


def worker_memory(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> WorkerMemory:
    """Return the estimated peak memory of one of `num_workers` workers. A CPU worker uses only host memory.

    - Model states: weights, gradients and the two moments of AdamW are fp32, 4 + 4 + 8 bytes per parameter. ZeRO shards
      the moments at stage 1, the gradients at stage 2 and the weights at stage 3 (Rajbhandari et al., ZeRO, 2020,
      section 3). ZeRO's optimizers also keep a copy of their shard of the weights, and gradients in buffers while they
      are reduced.
    - Activations: see `activation_bytes` (Korthikanti et al., Reducing Activation Recomputation in Large Transformer
      Models, 2022, equation 2).
    - Base weights, from which each trial starts.
    - Export: two copies of the full weights while they are written and compared. Activations are free by then.
    """
    on_gpu, shards = config.gpus_per_worker > 0, num_workers
    trained = shape.num_parameters if config.method == "full" else config.lora_r * shape.num_linear_ends
    weights = FP32 * (shape.num_parameters + (0 if config.method == "full" else trained))
    gradients, states = FP32 * trained, 2 * FP32 * trained
    parts = {"weights": weights, "gradients": gradients, "optimizer states": states}
    if config.zero_stage >= 1:
        parts["optimizer states"] = states // shards
        parts["weights of the optimizer"] = gradients // shards
        parts["gradient buffers"] = 2 * FP32 * min(trained, BUCKET_PARAMETERS) + gradients // shards
    if config.zero_stage >= 2:
        parts["gradients"] = gradients // shards
    if config.zero_stage == 3:
        parts["weights"] = weights // shards + FP32 * min(shape.num_parameters, LIVE_PARAMETERS)
    if batch.autocast:
        parts["weights in bfloat16"] = BF16 * shape.num_linear
    parts["activations"] = activation_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
    export_bytes = (2 if config.method == "full" else 1) * FP32 * shape.num_parameters
    host = {"process": RUNTIME_BYTES, "base weights": FP32 * shape.num_parameters}
    if not on_gpu:
        step_only = parts["activations"] + parts.get("weights in bfloat16", 0)
        return WorkerMemory(host | parts | {"export": max(0, export_bytes - step_only)}, {})
    offloaded = ["optimizer states", "weights of the optimizer"] if config.offload != "none" else []
    offloaded += ["weights"] if config.offload == "parameters" else []
    host |= {name: parts.pop(name) for name in offloaded if name in parts} | {"export": export_bytes}
    if config.offload == "parameters":
        parts["weights in use"] = FP32 * min(shape.num_parameters, LIVE_PARAMETERS)
    return WorkerMemory(host, {"process": DEVICE_RUNTIME_BYTES} | parts)


def activation_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> int:
    """Return the bytes that the forward pass of a worker's micro-batch keeps for the backward pass.

    The estimate assumes that all rows have `max_length` tokens. For each token, a layer keeps this many fp32 numbers:
    12 * hidden + 2 * intermediate with a plain feed-forward network, 16 * hidden + 4 * intermediate with a gated one.
    (With autocast, some numbers have 2 bytes and others have a copy.) Attention with dropout on CPU also keeps three
    numbers for each head and each attended token; otherwise attention weights are recomputed. Each logit needs three
    numbers.
    """
    rows = -(-config.batch_size // (num_workers * config.gradient_accumulation_steps))
    if config.batch_tokens is not None:
        rows = min(rows, config.batch_tokens // batch.max_length)
    tokens = rows * batch.max_length
    layer = 16 * shape.hidden + 4 * shape.intermediate if shape.gated else 12 * shape.hidden + 2 * shape.intermediate
    dropout = shape.attention_dropout if config.attention_dropout is None else config.attention_dropout
    if dropout > 0 and config.gpus_per_worker == 0:
        attention_width = max(batch.max_length, PACKED_TOKENS) if batch.packed else batch.max_length
        layer += 3 * shape.num_heads * attention_width
    layers = (shape.num_layers + 1) * layer
    if config.gradient_checkpointing:
        layers = shape.num_layers * shape.hidden + 2 * layer
    logits = shape.vocabulary if batch.packed else 0  # for each token
    return FP32 * tokens * (layers + 3 * logits)
