"""Estimate the memory of a training worker from its config and the shape of the model."""

from typing import Any

from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import ModelShape, rows_of_loss_chunk
from training.engine.validation_memory import forward_bytes
from training.engine.worker_memory import Batch, Parts, WorkerMemory

FP32, BF16 = 4, 2
RUNTIME_BYTES = 800 << 20
"""Host memory of a worker without the model: Python with Ray, torch, transformers and DeepSpeed, and the rows."""
DEVICE_RUNTIME_BYTES = 1 << 30
"""GPU memory of a worker without the model: CUDA context, kernels and rounding of the allocator. An assumption, not
measured on a GPU."""
LIVE_PARAMETERS, BUCKET_PARAMETERS = 1_000_000_000, 500_000_000
"""DeepSpeed's defaults: full parameters that stage 3 keeps at once, and gradients that it reduces at once."""
PACKED_TOKENS = 128  # minimum length of a packed row
LOGIT_BYTES = 12
"""Bytes for a logit at the start of the backward pass: its log-probability and two gradients. With autocast, the second
gradient also exists in bf16."""
ANSWERED_ROWS, ANSWERED_TOKENS = 64, 1 << 15
"""Maximum rows, and tokens of their prompts and answers, that a rank generates answers to at a time at ZeRO stage 3."""
FLATTENING = "flattened weights"
"""Name of the part of `start_bytes` that is a copy of the trained weights."""
MASK = 1
"""Bytes of the mask of dropout. An adapter keeps it and the value after dropout for each input of its linear layer."""
OFFLOADED = (
    "optimizer states",
    "weights of the optimizer",
    "gradients",
    "fp32 gradients",
    "updated weights",
    "accumulated gradients",
    "largest gradient",
)
"""Parts of `held_bytes` that are in host memory with `offload`. With `parameters`, the weights are too."""
ROUNDED = ("fp32 gradients", "updated weights", "gradients", "largest gradient")
"""Those of them that are one page-locked tensor, whose size torch rounds up to a power of two."""


def worker_memory(
    config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int, gpu_bytes: int | None = None
) -> WorkerMemory:
    """Return the estimated peak memory of one of `num_workers` workers. A CPU worker uses only host memory.

    It is that of the phase that needs the most: start of the engine, forward and backward pass, update of the weights,
    validation, or export. Base weights are mapped from a file that all workers of a node share, and are not counted.
    `gpu_bytes` is the memory of a GPU, if it is known. At stages 1 and 2, DeepSpeed flattens the weights in host memory
    if the GPU does not have enough.
    """
    held = held_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
    step = step_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
    validation = validation_bytes(config, shape=shape, batch=batch)
    exported, compared = export_bytes(config, shape=shape, batch=batch)
    process, started = {"process": RUNTIME_BYTES}, start_bytes(config, shape=shape, batch=batch)
    if config.gpus_per_worker == 0:
        phases = [held | step, held | validation, started]
        host, exporting = max(phases, key=_total), max([*phases, held | exported | compared], key=_total)
        return WorkerMemory(process | host, {}, process | exporting)
    device_process = {"process": DEVICE_RUNTIME_BYTES}
    on_host = [_take_offloaded(held, config)]
    on_device = [held | step, held | validation, held | compared]
    if gpu_bytes is None or _total(device_process | started) <= gpu_bytes:
        on_device.append(started)
    elif FLATTENING in started:
        on_host.append({FLATTENING: 2 * started[FLATTENING]})
    host, exporting = max(on_host, key=_total), max([*on_host, on_host[0] | exported], key=_total)
    return WorkerMemory(process | host, device_process | max(on_device, key=_total), process | exporting)


def _take_offloaded(held: Parts, config: TrainingConfig) -> Parts:
    """Remove from `held` what is in host memory with `offload`, and return it.

    Torch rounds the size of a page-locked tensor up to a power of two, and keeps such memory when the tensor is freed
    (torch 2.13, ATen/core/CachingHostAllocator.h:302). None of this was measured on a GPU.
    """
    if config.offload == "none":
        return {}
    parts = {name: held.pop(name) for name in OFFLOADED if name in held}
    rounded = ROUNDED if config.zero_stage == 3 else (*ROUNDED, "weights of the optimizer")
    if config.offload == "parameters":
        parts |= {name: held.pop(name) for name in ("weights", "weights for the node") if name in held}
        if config.method == "full":  # single weights were page-locked before they were copied to one tensor
            parts["weights before flattening"] = parts["weights"]
            rounded = (*rounded, "weights")
    return {name: 1 << (size - 1).bit_length() if name in rounded else size for name, size in parts.items()}


def start_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> Parts:
    """Return the memory during the start of the engine, if it is not less than what is held later.

    At stages 1 and 2, the trained weights are copied to one tensor, which replaces them. Nothing else is held then.
    """
    if config.zero_stage not in (1, 2):
        return {}
    dtype_bytes = BF16 if config.parameter_dtype == "bf16" else FP32
    weights = _weight_bytes(config, shape=shape, batch=batch)
    return {"weights": weights, FLATTENING: dtype_bytes * _trained(config, shape)}


def export_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> tuple[Parts, Parts]:
    """Return the additional memory of rank 0 during an export: in host memory, and on its device.

    All weights are written one after another, so it holds the largest one in fp32, and without a GPU also DeepSpeed's
    two copies of it; their file is mapped. An adapter is held in fp32, and read again from its file. To compare the
    logits, it copies the base model to the device, one layer at a time, and merges the layer's adapter: one matrix at a
    time is added to another one in fp32, which is a product that is scaled. An output layer is assumed to have its own
    weights.
    """
    layer = shape.num_linear // shape.num_layers
    others = shape.num_parameters - shape.num_linear + (shape.vocabulary * shape.hidden if batch.packed else 0)
    copied = {"compared weights": _parameter_bytes(config) * (layer + others)}
    matrix = FP32 * shape.hidden * shape.intermediate
    if config.method == "full":
        copies = 3 if config.gpus_per_worker == 0 else 1
        return {"export": copies * max(FP32 * shape.vocabulary * shape.hidden, matrix)}, copied
    return {"export": 2 * FP32 * _trained(config, shape)}, copied | {"merged matrix": 2 * matrix}


def held_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> Parts:
    """Return the memory that is held between two steps.

    Trained weights and the two moments of AdamW are fp32: 4 + 8 bytes per parameter. ZeRO shards the moments from stage
    1, and the weights at stage 3 (Rajbhandari et al., ZeRO, 2020, section 3). The optimizer has a copy of its shard of
    the weights. At stage 3, buffers for gradients are never freed. With `offload`, gradients are held too.
    """
    shards = num_workers
    trained, weights = _trained(config, shape), _weight_bytes(config, shape=shape, batch=batch)
    parts = {"weights": weights, "optimizer states": 2 * FP32 * trained}
    if config.zero_stage >= 1:
        parts["optimizer states"] //= shards
        parts["weights of the optimizer"] = FP32 * trained // shards
    elif config.parameter_dtype == "bf16":
        parts["weights of the optimizer"] = FP32 * trained
    if config.zero_stage == 3:
        if config.zero_hpz_partition_size > 1:
            parts["weights for the node"] = weights // config.zero_hpz_partition_size
        parts["weights"] //= shards
        parts["gradients"] = _gradient_bytes(config) * trained // shards
        parts["gradient buffers"] = _buffer_bytes(config, trained=trained, autocast=batch.autocast)
    if config.offload != "none":
        parts |= _offloaded_gradients(config, shape=shape, num_workers=num_workers)
    return parts


def _offloaded_gradients(config: TrainingConfig, *, shape: ModelShape, num_workers: int) -> Parts:
    """Return the additional memory that is held with `offload`; see DeepSpeed 0.19.8.

    The fp32 gradients of a shard are never freed (zero/stage_1_and_2.py:937, zero/stage3.py:1338). At stages 1 and 2,
    updated weights leave the host in the dtype of the parameters (:569), and both sides have a buffer for the gradient
    of the largest weight (:653). At stage 2, each micro-batch adds its gradients on the host (:1823).
    """
    own, parameter = _trained(config, shape) // num_workers, _parameter_bytes(config)
    parts = {"fp32 gradients": FP32 * own}
    if config.zero_stage == 3:
        return parts
    parts["updated weights"] = parameter * own
    if config.method == "full":
        largest = parameter * shape.vocabulary * shape.hidden
        parts |= {"largest gradient": largest, "largest gradient on the device": largest}
    if config.zero_stage == 2 and _accumulates(config, num_workers):
        parts["accumulated gradients"] = parameter * own
    return parts


def step_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> Parts:
    """Return the additional memory of a step: of its forward and backward pass or, if it is larger, of its update.

    Activations are freed while gradients are computed, so both are counted together only if gradients are accumulated
    over several passes. Buffers for gradients are made when the memory of the logits is free again. The optimizer
    updates its shard of the weights with fp32 copies of bf16 gradients.
    """
    stage, shards, trained = config.zero_stage, num_workers, _trained(config, shape)
    computed = {"activations": activation_bytes(config, shape=shape, batch=batch, num_workers=num_workers)}
    gradient = _gradient_bytes(config)
    own = gradient * trained // (shards if stage >= 2 else 1)
    whole = stage < (3 if config.offload == "none" else 2)  # gradients stay on the device until the update
    if whole and _accumulates(config, num_workers):
        computed["gradients"] = own
    buffers = _buffer_bytes(config, trained=trained, autocast=batch.autocast)
    if stage in (1, 2):
        logits = _logit_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
        computed["gradient buffers"] = max(0, buffers - logits)
    if stage < 3 and batch.autocast and config.parameter_dtype == "fp32" and not config.gradient_checkpointing:
        frozen_bf16 = config.method == "lora" and shape.stored_bf16
        computed["weights in bfloat16"] = 0 if frozen_bf16 else BF16 * shape.num_linear
    if stage == 3:
        computed["gathered weights"] = _gathered_bytes(config, shape=shape, batch=batch)
        if config.method == "full":  # of the largest weight, before it is partitioned
            computed["full gradient"] = gradient * shape.vocabulary * shape.hidden
    updated: Parts = {}
    if whole:
        updated["gradients"] = own
    if stage == 0:  # the buffers are free again before the copies are made
        reduced = gradient * min(trained, BUCKET_PARAMETERS) if shards > 1 else 0
        copied = FP32 * trained if gradient == BF16 else 0
        updated |= {"gradient buffers": reduced} if reduced > copied else {"fp32 gradients": copied}
    elif config.offload == "none":
        updated["flat gradients"] = (FP32 + (BF16 if gradient == BF16 else 0)) * trained // shards
    if stage in (1, 2):
        updated["gradient buffers"] = buffers
    return max(computed, updated, key=_total)


def validation_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> Parts:
    """Return the additional memory of a validation.

    A classifier runs a forward pass over many rows, in which autocast keeps copies of trained weights. A chat model is
    validated with its own weights in the dtype of inference. LoRA needs a copy of the layers with merged weights, and
    of the others if they are stored in another dtype. At stage 3, the model generates with its parameters; at the other
    stages, the cache has what is free on a GPU.
    """
    trained_in_bf16, parts = config.parameter_dtype == "bf16", {}
    if config.zero_stage == 3:
        parts["gathered weights"] = _gathered_bytes(config, shape=shape, batch=batch)
    elif batch.autocast and not trained_in_bf16 and config.method == "full":
        parts["weights in bfloat16"] = BF16 * shape.num_linear
    if not batch.packed:
        return parts | {"validation": forward_bytes(config, shape=shape, batch=batch)}
    if config.zero_stage == 3:
        return parts | _answer_bytes(config, shape=shape, batch=batch)
    in_bf16 = batch.autocast or trained_in_bf16
    if config.method == "lora":
        copied = shape.num_linear if in_bf16 == shape.stored_bf16 else shape.num_parameters
    else:
        copied = 0 if in_bf16 == trained_in_bf16 else shape.num_parameters
    return {"validation": (BF16 if in_bf16 else FP32) * copied}


def answered_rows(num_tokens: int) -> int:
    """Return the number of rows that a rank answers at a time, if prompt and answer have up to `num_tokens` tokens."""
    return max(1, min(ANSWERED_ROWS, ANSWERED_TOKENS // num_tokens))


def _answer_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> Parts:
    """Return the bytes for the generation of answers to prompts of `max_length` tokens at stage 3.

    The forward pass over the prompts needs the most in its last layer: in the attention, with a copy of the mask in the
    dtype of the computation, or in the feed-forward network. When a token is added, the cache of a layer is copied.
    With autocast, rotary embeddings make keys fp32, while values are bf16.
    """
    length = batch.max_length + batch.max_new_tokens
    num_rows = answered_rows(length)
    residual = BF16 if config.parameter_dtype == "bf16" else FP32
    computed = BF16 if batch.autocast else residual
    mask = batch.max_length if num_rows > 1 else 0  # one row needs no padding
    attention = 7 * residual * shape.hidden + computed * mask
    network = 4 * residual * shape.hidden + (3 if shape.gated else 2) * computed * shape.intermediate
    prompts = num_rows * batch.max_length * (mask + max(attention, network))
    cached = num_rows * (shape.kv_width or shape.hidden) * (residual + computed)  # of a layer, for each token
    answers = cached * (shape.num_layers * batch.max_new_tokens + length)
    return {"cache": cached * shape.num_layers * batch.max_length, "answers": max(prompts, answers)}


def activation_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> int:
    """Return the bytes that the forward pass of a worker's micro-batch keeps for the backward pass.

    The estimate assumes that all rows have `max_length` tokens. The terms of `_layer_bytes` follow Korthikanti et al.,
    Reducing Activation Recomputation in Large Transformer Models, 2022, section 4.1. With checkpointing, only the input
    of each layer is kept, and one layer is computed again at a time.
    """
    tokens = micro_batch_tokens(config, batch=batch, num_workers=num_workers)
    layer = tokens * _layer_bytes(config, shape=shape, batch=batch)
    logits = _logit_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
    gradient = _head_gradient_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
    if config.gradient_checkpointing:
        kept = BF16 if config.parameter_dtype == "bf16" else FP32
        return tokens * kept * shape.num_layers * shape.hidden + max(layer, logits) + gradient
    return shape.num_layers * layer + logits + gradient


def micro_batch_tokens(config: TrainingConfig, *, batch: Batch, num_workers: int) -> int:
    """Return the number of tokens of a worker's micro-batch."""
    rows = config.micro_batch_size(num_workers)
    if config.batch_tokens is not None:
        rows = min(rows, max(1, config.batch_tokens // batch.max_length))
    return rows * batch.max_length


def _logit_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> int:
    """Return the bytes of the logits of a micro-batch, computed at each token of packed rows, or of a chunk of them."""
    if not batch.packed:
        return 0
    num_tokens, rows = _loss_tokens(config, shape=shape, batch=batch, num_workers=num_workers)
    return (LOGIT_BYTES + (BF16 if _in_bf16(config, batch) else 0)) * shape.vocabulary * min(num_tokens, rows)


def _head_gradient_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> int:
    """Return the bytes of the gradient of the head's weight, if the loss computes it in the forward pass, in chunks.

    It is the sum in fp32 and the gradient of a chunk.
    """
    num_tokens, rows = _loss_tokens(config, shape=shape, batch=batch, num_workers=num_workers)
    if not batch.packed or config.method == "lora" or num_tokens <= rows:
        return 0
    return (FP32 + (BF16 if _in_bf16(config, batch) else FP32)) * shape.vocabulary * shape.hidden


def _loss_tokens(config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int) -> tuple[int, int]:
    """Return the number of tokens of a micro-batch, and the number of them whose logits are computed at a time."""
    num_tokens = micro_batch_tokens(config, batch=batch, num_workers=num_workers)
    return num_tokens, num_tokens if shape.needs_all_logits else rows_of_loss_chunk(shape.vocabulary)


def _in_bf16(config: TrainingConfig, batch: Batch) -> bool:
    """Return True if linear layers compute in bf16."""
    return batch.autocast or config.parameter_dtype == "bf16"


def _layer_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> int:
    """Return the bytes that a layer keeps for each token.

    With autocast, the residual stream and the norms are fp32, and each linear layer keeps its own copy of its input in
    bf16. With bf16 parameters, all is bf16. Attention with dropout on CPU keeps three numbers for each head and
    each attended token; otherwise attention weights are computed again.
    """
    hidden, intermediate = shape.hidden, shape.intermediate
    bf16 = config.parameter_dtype == "bf16"
    if bf16:
        layer = 20 * hidden + 8 * intermediate if shape.gated else 17 * hidden + 4 * intermediate
    elif shape.gated:
        layer = 34 * hidden + 8 * intermediate if batch.autocast else 40 * hidden + 16 * intermediate
    else:
        layer = 28 * hidden + 4 * intermediate if batch.autocast else 34 * hidden + 8 * intermediate
    if config.method == "lora":
        layer += ((BF16 if bf16 else FP32) + MASK) * ((6 if shape.gated else 5) * hidden + intermediate)
    dropout = shape.attention_dropout if config.attention_dropout is None else config.attention_dropout
    if dropout > 0 and config.gpus_per_worker == 0:
        width = max(batch.max_length, PACKED_TOKENS) if batch.packed else batch.max_length
        layer += 3 * (BF16 if bf16 else FP32) * shape.num_heads * width
    return layer


def _accumulates(config: TrainingConfig, num_workers: int) -> bool:
    """Return True if a step can have several micro-batches."""
    return config.batch_tokens is not None or config.accumulation_steps(num_workers) > 1


def _parameter_bytes(config: TrainingConfig) -> int:
    """Return the bytes of a trained parameter."""
    return BF16 if config.parameter_dtype == "bf16" else FP32


def _trained(config: TrainingConfig, shape: ModelShape) -> int:
    """Return the number of trained parameters."""
    return shape.num_parameters if config.method == "full" else config.lora_r * shape.num_linear_ends


def _weight_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> int:
    """Return the bytes of the whole model's weights; see `training.engine.placement.place_weights`."""
    if config.parameter_dtype == "bf16":
        return BF16 * (shape.num_parameters + (_trained(config, shape) if config.method == "lora" else 0))
    if config.method == "full":
        return FP32 * shape.num_parameters
    in_bf16 = shape.num_linear if batch.autocast and shape.stored_bf16 else 0
    return FP32 * (shape.num_parameters - in_bf16 + _trained(config, shape)) + BF16 * in_bf16


def _gradient_bytes(config: TrainingConfig) -> int:
    """Return the bytes of a gradient: those of its parameter, unless an option of DeepSpeed makes gradients fp32."""
    options: Any = config.deepspeed.get("data_types", {})
    return BF16 if config.parameter_dtype == "bf16" and options.get("grad_accum_dtype") != "fp32" else FP32


def _gathered_bytes(config: TrainingConfig, *, shape: ModelShape, batch: Batch) -> int:
    """Return the bytes of the full weights that stage 3 has gathered at a time. Over NCCL, linear weights are bf16."""
    live = min(shape.num_parameters, _zero_option(config, "stage3_max_live_parameters", LIVE_PARAMETERS))
    if config.parameter_dtype == "bf16":
        return BF16 * live
    in_bf16 = batch.autocast and (config.gpus_per_worker > 0 or (config.method == "lora" and shape.stored_bf16))
    linear = live * shape.num_linear // shape.num_parameters if in_bf16 else 0
    return FP32 * (live - linear) + BF16 * linear


def _buffer_bytes(config: TrainingConfig, *, trained: int, autocast: bool) -> int:
    """Return the bytes of the buffers in which gradients are reduced, one for each dtype in which they are reduced.

    They have a fixed size, but on CPU only memory that is used counts.
    """
    size = _zero_option(config, "reduce_bucket_size", BUCKET_PARAMETERS)
    per_parameter = BF16 if config.parameter_dtype == "bf16" else FP32
    if config.gpus_per_worker == 0:
        return per_parameter * min(size, trained)
    if autocast and config.parameter_dtype == "fp32":  # linear weights and others
        per_parameter = FP32 + BF16 if config.zero_stage == 3 else 2 * FP32
    return size * per_parameter


def _zero_option(config: TrainingConfig, name: str, default: int) -> int:
    options: Any = config.deepspeed.get("zero_optimization", {})
    return int(options.get(name, default))


def _total(parts: Parts) -> int:
    return sum(parts.values())
