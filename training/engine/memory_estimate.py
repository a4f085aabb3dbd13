"""Estimate the memory of a training worker from its config and the shape of the model.

The estimate is an upper bound: it adds up what a worker holds at different times.
"""

from dataclasses import dataclass

from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import CPU_ROWS, GPU_ROWS, ModelShape, rows_of_loss_chunk

Parts = dict[str, int]
"""Bytes by purpose."""

GIB = 1 << 30
FP32 = 4
BF16 = 2
HOST_PROCESS_BYTES = 800 << 20
"""Host memory of a worker without the model: Python with Ray, torch, transformers and DeepSpeed,
and the rows."""
GPU_PROCESS_BYTES = 1 << 30
"""GPU memory of a worker without the model: CUDA context, kernels and rounding of the allocator. An
assumption, not measured on a GPU."""
LIVE_PARAMETERS = 1_000_000_000
BUCKET_PARAMETERS = 500_000_000
"""DeepSpeed's defaults: full parameters that stage 3 keeps at once, and gradients that it reduces
at once."""
LOGIT_BYTES = 14
"""Bytes for a logit at the start of the backward pass: its value, its log-probability and two
gradients."""
PAGE_LOCKED = 1.5
"""Factor for offloaded states, because torch rounds page-locked tensors up to a power of two.
DeepSpeed's estimates use the same factor (`additional_buffer_factor`)."""
VALIDATION_TOKENS = 16_384
"""Tokens of a classifier's forward pass on a GPU, whose memory also holds the states of the
training."""
ANSWERED_ROWS = 64
ANSWERED_TOKENS = 1 << 15
"""Maximum rows, and tokens of their prompts and answers, that a rank generates answers to at a time
at ZeRO stage 3."""
ADVICE = (
    "set several of training.gradient_checkpointing: true, training.zero_stage: 3 with more "
    "workers, training.offload: optimizer, training.method: lora, a smaller training.batch_tokens "
    "and a smaller data.max_length, or use a smaller base model"
)


@dataclass(frozen=True)
class BatchShape:
    """Properties of a batch that determine the memory of a forward pass."""

    max_length: int
    max_new_tokens: int = 0  # of an answer to a validation row of a chat task
    packed: bool = False
    """Conversations are packed into one row, with logits at each token; else rows are padded."""
    autocast: bool = False  # linear layers compute in bfloat16


@dataclass(frozen=True)
class WorkerMemory:
    """Peak memory of a worker in bytes, by purpose."""

    host: Parts
    device: Parts  # memory of its GPU; empty if it trains on CPU

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())


def answered_rows(num_tokens: int) -> int:
    """Return the number of rows that a rank answers at a time, if prompt and answer have up to
    `num_tokens` tokens."""
    return max(1, min(ANSWERED_ROWS, ANSWERED_TOKENS // num_tokens))


def validated_rows(max_length: int, *, on_gpu: bool) -> int:
    """Return the largest number of rows of a classifier's validation pass if they have `max_length`
    tokens."""
    if on_gpu:
        return max(1, min(GPU_ROWS, VALIDATION_TOKENS // max_length))
    return CPU_ROWS


def worker_memory(
    config: TrainingConfig, *, shape: ModelShape, batch: BatchShape, num_workers: int
) -> WorkerMemory:
    """Return the estimated peak memory of one of `num_workers` workers. A CPU worker uses only host
    memory.

    Base weights are mapped from a file that all workers of a node share, and are not counted. One
    worker exports, but the estimate is the same for all.
    """
    states, offloaded = _states(config, shape=shape, batch=batch, num_workers=num_workers)
    largest = FP32 * shape.vocabulary * shape.hidden
    used = states | {
        "buffers": 2 * largest + _buffers(config, shape=shape, batch=batch),
        "activations": max(
            activation_bytes(config, shape=shape, batch=batch, num_workers=num_workers),
            validation_bytes(config, shape=shape, batch=batch),
        ),
    }
    host = {"process": HOST_PROCESS_BYTES} | offloaded
    if config.gpus_per_worker == 0:
        return WorkerMemory(host | used, {})
    return WorkerMemory(host | {"export": largest}, {"process": GPU_PROCESS_BYTES} | used)


def _states(
    config: TrainingConfig, *, shape: ModelShape, batch: BatchShape, num_workers: int
) -> tuple[Parts, Parts]:
    """Return weights, gradients and optimizer states on the device, and what is offloaded of them
    to host memory.

    DeepSpeed's `estimate_zero2_model_states_mem_needs` and `estimate_zero3_model_states_mem_needs`
    have the same 18 bytes for a parameter in bf16, but they assume that all parameters are trained,
    and in 16 bits. For LoRA of Llama 3 8B at stage 3 on 8 GPUs, they return 18.8 GiB instead of
    2.1.
    """
    parameter = _parameter_bytes(config)
    trained = shape.num_parameters
    weights = parameter * shape.num_parameters
    if config.method == "lora":
        trained = config.lora_r * shape.num_linear_ends
        weights += parameter * trained
        if batch.autocast and shape.stored_bf16 and parameter == FP32:
            weights -= BF16 * shape.num_linear  # see `training.engine.placement.place_weights`
    gradients = parameter * trained

    # Two moments, fp32 weights and their gradients. At stage 0, fp32 parameters have no copy.
    optimizer = 4 * FP32 * trained
    if parameter == BF16:
        optimizer = 18 * trained
    elif config.zero_stage == 0:
        optimizer = 2 * FP32 * trained
    if config.zero_stage > 0:
        optimizer //= num_workers

    if config.zero_stage == 2:
        # The trained weights are copied to one tensor before there are optimizer states.
        before = gradients
        if config.offload == "none":
            before -= optimizer
        gradients = max(gradients // num_workers, before)
    elif config.zero_stage == 3:
        weights //= num_workers
        gradients //= num_workers

    device = {"weights": weights, "gradients": gradients, "optimizer states": optimizer}
    host: Parts = {}
    if config.offload != "none":
        host["optimizer states"] = device.pop("optimizer states")
        host["gradients"] = parameter * trained // num_workers
        if config.zero_stage == 3:
            del device["gradients"]
    if config.offload == "parameters":
        host["weights"] = device.pop("weights")
        if config.method == "full":
            host["weights"] *= 2  # one by one, before they are copied to one tensor
    return device, {f"offloaded {name}": int(PAGE_LOCKED * size) for name, size in host.items()}


def _buffers(config: TrainingConfig, *, shape: ModelShape, batch: BatchShape) -> int:
    """Return the bytes of gradients that are reduced, and of copies of weights.

    On a GPU, the buffers for gradients have a fixed size, one for each dtype. Stage 3 gathers
    weights; at the other stages, autocast copies them to bf16.
    """
    parameter = _parameter_bytes(config)
    computed = _computed_bytes(config, batch)
    on_gpu = config.gpus_per_worker > 0

    reduced = 0
    if on_gpu and config.zero_stage > 0:
        reduced = 2 * BUCKET_PARAMETERS
    elif config.method == "full":
        reduced = min(BUCKET_PARAMETERS, shape.num_parameters)

    copied = 0
    is_stored = config.method == "lora" and shape.stored_bf16
    if config.zero_stage == 3:
        copied = min(shape.num_parameters, LIVE_PARAMETERS)
        copied *= computed if on_gpu else parameter
    elif computed < parameter and not config.gradient_checkpointing and not is_stored:
        copied = BF16 * shape.num_linear
    return parameter * reduced + copied


def _layer(config: TrainingConfig, *, shape: ModelShape, batch: BatchShape) -> int:
    """Return the bytes of a layer for each token, without adapters and attention weights.

    The terms follow Korthikanti et al., Reducing Activation Recomputation in Large Transformer
    Models, 2022, section 4.1.
    """
    wide = 4 if shape.gated else 2
    return (
        10 * _parameter_bytes(config) * shape.hidden
        + wide * _computed_bytes(config, batch) * shape.intermediate
    )


def activation_bytes(
    config: TrainingConfig, *, shape: ModelShape, batch: BatchShape, num_workers: int
) -> int:
    """Return the bytes that the forward pass of a micro-batch keeps, if all of its rows have
    `max_length` tokens.

    With checkpointing, only the input of each layer is kept, and one layer is computed again at a
    time. An adapter keeps its input after dropout, and the mask of the dropout. Only attention with
    dropout on CPU keeps its weights.
    """
    parameter = _parameter_bytes(config)
    layer = _layer(config, shape=shape, batch=batch)
    if config.method == "lora":
        layer += (parameter + 1) * (6 * shape.hidden + shape.intermediate)
    dropout = config.attention_dropout
    if dropout is None:
        dropout = shape.attention_dropout
    if dropout > 0 and config.gpus_per_worker == 0:
        layer += 3 * parameter * shape.num_heads * batch.max_length

    stored = shape.num_layers * layer
    if config.gradient_checkpointing:
        stored = layer + shape.num_layers * parameter * shape.hidden

    rows = config.micro_batch_size(num_workers)
    if config.batch_tokens is not None:
        rows = min(rows, max(1, config.batch_tokens // batch.max_length))
    tokens = batch.max_length * rows

    logits = 0
    if batch.packed:
        logits = tokens
        if not shape.needs_all_logits:
            logits = min(tokens, rows_of_loss_chunk(shape.vocabulary))
    return tokens * stored + LOGIT_BYTES * shape.vocabulary * logits


def validation_bytes(config: TrainingConfig, *, shape: ModelShape, batch: BatchShape) -> int:
    """Return the bytes of a classifier's largest forward pass; for chat, of the answers or of the
    model for them.

    At stage 3, a chat model generates with its own parameters; at the other stages, with a copy in
    the dtype of inference, which takes no more than the gradients of full training, of which there
    are none then.
    """
    parameter = _parameter_bytes(config)
    computed = _computed_bytes(config, batch)
    if batch.packed and config.zero_stage < 3:
        if config.method == "lora":
            return computed * shape.num_parameters
        return 0
    length = batch.max_length + batch.max_new_tokens
    token = _layer(config, shape=shape, batch=batch) + FP32 * (length + shape.hidden)
    if not batch.packed:
        return validated_rows(length, on_gpu=config.gpus_per_worker > 0) * length * token

    keys = shape.kv_width or shape.hidden
    token += (parameter + computed) * keys * (shape.num_layers + 1)
    return answered_rows(length) * length * token


def _parameter_bytes(config: TrainingConfig) -> int:
    """Return the bytes of a trained parameter, of its gradient and of a value of the residual
    stream."""
    if config.parameter_dtype == "bf16":
        return BF16
    return FP32


def _computed_bytes(config: TrainingConfig, batch: BatchShape) -> int:
    """Return the bytes of a value that a linear layer computes."""
    if batch.autocast:
        return BF16
    return _parameter_bytes(config)
