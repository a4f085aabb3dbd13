"""Cases that train in one process without Ray: smoke, throughput, resumes and memory."""

import gc
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.gpu.models import CLASSES, saved_model, training_task
from benchmarks.gpu.report import Figure
from benchmarks.harness import Figures, process_group, rank_variables, ratios_of_rounds, take_turns
from benchmarks.training.training_overhead import (
    WALL,
    finetune,
    mark,
    rates,
    run_trainer,
    trainer_rows,
)
from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.data.task_data import CLASSIFICATION, ChatData
from tailorbird.models.lora import add_adapter
from tailorbird.models.metadata import read_metadata
from tailorbird.storage.node_cache import local_copy
from training import checkpoint
from training.engine.deepspeed_private import destroy_engine
from training.engine.memory_estimate import GPU_PROCESS_BYTES, BatchShape, worker_memory
from training.export import export_weights
from training.loop import Callbacks, build_engine, train
from training.reports import Progress
from training.task import Diverged, TaskRuntime

PEAK_FLOPS = 989e12
"""Peak of an H100 SXM (and H200) in bf16 without sparsity."""
ROUNDS = 3
WARM_UP = 3
"""Steps before the measurement, in which kernels are selected and the allocator grows."""
VALIDATION_PROMPTS = 64
VALIDATION_TOKENS = 128
RESUME_STEPS = 5
CHECKPOINT_AT = 2
RESUME_TOLERANCE = "<= 0.001"
"""Relative difference of the loss. On a GPU, atomic additions have no fixed order."""
LEARNING_RATES = {"chat": 1e-2, "classification": 1e-3}
"""Rates at which lost moments of the optimizer change the loss of the second step after a resume by
more than ten times the bound."""
COMBINATIONS = (
    ("chat", "full", 0, False, "none"),
    ("classification", "lora", 0, True, "none"),
    ("chat", "full", 1, False, "optimizer"),
    ("classification", "lora", 1, True, "none"),
    ("classification", "full", 2, False, "none"),
    ("chat", "lora", 2, True, "optimizer"),
    ("chat", "lora", 3, True, "none"),
    ("chat", "full", 3, True, "parameters"),
    ("classification", "lora", 3, False, "optimizer"),
    ("classification", "lora", 3, False, "parameters"),
)
"""Task, method, stage, checkpointing of activations and offload. Each pair of values of two
settings occurs, except for pairs that a recipe cannot have (offload below its stage)."""
GIB = 2**30


@dataclass(frozen=True)
class Measurement:
    """A training whose rate is measured."""

    task: str
    size: str
    config: dict[str, Any]
    num_tokens: int  # of each row
    num_steps: int


def training_config(reduced: bool, **fields: Any) -> TrainingConfig:
    """Return the config of one worker with a GPU, or without one in the reduced form."""
    values = {"num_workers": 1, "epochs": 1, "gpus_per_worker": 0 if reduced else 1}
    return TrainingConfig.model_validate(values | fields)


def smoke_lora(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Train ten steps of the 8B model with LoRA on short rows, and export it."""
    return _smoke(folder, reduced, size="8b", method="lora", zero_stage=0)


def smoke_zero3(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Train ten steps of all parameters of the 1.2B model at stage 3, and export it."""
    return _smoke(folder, reduced, size="1b", method="full", zero_stage=3)


def _smoke(folder: Path, reduced: bool, *, size: str, **fields: Any) -> Iterator[Figure]:
    base_model = saved_model(folder, "chat", "tiny" if reduced else size)
    runtime = training_task(base_model, "chat", num_rows=20, num_tokens=64).load_runtime()
    config = training_config(reduced, batch_size=2, **fields)
    with process_group(), rank_variables():
        engine = build_engine(config, runtime)
        report = train(engine, config, runtime=runtime)
        export_weights(engine, config, runtime=runtime, folder=folder / f"smoke-{size}")
        destroy_engine(engine)
    yield Figure("loss_is_finite", float(math.isfinite(report.loss)), ">= 1")


def lora_8b(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Measure LoRA of the 8B model at 4k tokens, with fp32 and with bf16 parameters."""
    # A case has one process group, because DeepSpeed keeps the first one of a process.
    with process_group():
        for dtype in ("fp32", "bf16"):
            fields = {"batch_size": 2, "method": "lora", "gradient_checkpointing": True}
            config = fields | {"parameter_dtype": dtype}
            measured = Measurement("chat", "8b", config, num_tokens=4096, num_steps=10)
            yield from _throughput(f"4k_{dtype}", folder, reduced, measured, least_rate=8000)


def full_1b(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Measure full training of the 1.2B model at 2k and 8k tokens, and a validation."""
    short = {"batch_size": 8, "batch_tokens": 8192}
    long = {"batch_size": 2, "batch_tokens": 8192, "gradient_checkpointing": True}
    at_2k = Measurement("chat", "1b", short, num_tokens=2048, num_steps=16)
    at_8k = Measurement("chat", "1b", long, num_tokens=8192, num_steps=12)
    with process_group():
        yield from _throughput("2k", folder, reduced, at_2k, least_mfu=0.40)
        yield from _throughput("8k", folder, reduced, at_8k)
        yield _validation(folder, reduced)


def encoder(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Measure full training of a 0.4B encoder at 128 and 512 tokens."""
    at_128 = Measurement("classification", "400m", {"batch_size": 128}, 128, num_steps=48)
    at_512 = Measurement("classification", "400m", {"batch_size": 32}, 512, num_steps=48)
    with process_group():
        yield from _throughput("128", folder, reduced, at_128)
        yield from _throughput("512", folder, reduced, at_512, least_mfu=0.35)


def _throughput(
    name: str,
    folder: Path,
    reduced: bool,
    measured: Measurement,
    *,
    least_rate: float = 0,
    least_mfu: float = 0,
) -> Iterator[Figure]:
    """Yield tokens per second, their ratio to transformers.Trainer, and the model FLOPs utilization
    (MFU).

    The spread is the largest minus the smallest ratio of the rounds: the resolution of the ratio.
    """
    if reduced:
        tiny = measured.config | {"batch_size": 4, "batch_tokens": None}
        measured = Measurement(measured.task, "tiny", tiny, num_tokens=64, num_steps=6)
    base_model = saved_model(folder, measured.task, measured.size)
    config = training_config(reduced, zero_stage=0, **measured.config)
    num_rows = measured.num_steps * config.batch_size
    task = training_task(
        base_model, measured.task, num_rows=num_rows, num_tokens=measured.num_tokens
    )
    runtime = task.load_runtime()
    per_step = config.batch_size * measured.num_tokens
    rounds = take_turns(
        {
            "tailorbird": partial(_tailorbird_rate, runtime, config, per_step),
            "trainer": partial(_trainer_rate, measured, base_model, runtime, config),
        },
        rounds=ROUNDS,
    )
    rate = median(figures[WALL] for figures in rounds["tailorbird"])
    ratios = ratios_of_rounds(rounds, "tailorbird", "trainer", figure=WALL)
    mfu = rate * _flops_per_token(measured, base_model) / PEAK_FLOPS
    yield Figure(f"{name}.tokens_per_second", rate, f">= {least_rate}", is_hardware=True)
    yield Figure(f"{name}.ratio_to_trainer", median(ratios), ">= 1", is_hardware=True)
    yield Figure(f"{name}.ratio_spread", max(ratios) - min(ratios))
    yield Figure(f"{name}.mfu", mfu, f">= {least_mfu}", is_hardware=True)


def _flops_per_token(measured: Measurement, base_model: str) -> float:
    """Return the FLOPs of a token's forward and backward pass, without recomputation.

    Each weight of a matrix product takes 2 FLOPs in the forward pass and, if it is trained, 4 in
    the backward pass, otherwise 2. Attention takes 12 FLOPs for each layer, feature and attended
    token (Chowdhery et al., PaLM, 2022, appendix B); a causal model attends to half of the tokens.
    """
    is_chat = measured.task == "chat"
    shape = read_metadata(base_model, task=ChatData() if is_chat else CLASSIFICATION).shape
    passes = 4 if measured.config.get("method") == "lora" else 6
    attended = measured.num_tokens / 2 if is_chat else measured.num_tokens
    weights = shape.num_linear
    if measured.size == "1b":  # its input embedding shares the output weights
        weights += shape.vocabulary * shape.hidden
    return passes * weights + 12 * shape.num_layers * shape.hidden * attended


def _tailorbird_rate(runtime: TaskRuntime, config: TrainingConfig, per_step: float) -> Figures:
    marks, _ = finetune(runtime, config)
    _free_memory()
    return rates(marks, per_step=per_step, warm_up=WARM_UP)


def _trainer_rate(
    measured: Measurement, base_model: str, runtime: TaskRuntime, config: TrainingConfig
) -> Figures:
    """Return the same for transformers.Trainer with bf16, sdpa, fused AdamW and the same
    checkpointing."""
    is_on_gpu = config.gpus_per_worker == 1
    num_parts = 2 if config.batch_tokens else 1
    marks = run_trainer(
        _trainer_model(measured, base_model, config),
        trainer_rows(runtime),
        _stacked,
        warm_up=WARM_UP,
        per_device_train_batch_size=config.batch_size // num_parts,
        gradient_accumulation_steps=num_parts,
        learning_rate=config.learning_rate,
        bf16=is_on_gpu,
        optim="adamw_torch_fused",
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=2,
        use_cpu=not is_on_gpu,
        logging_strategy="no",
    )
    _free_memory()
    per_step = config.batch_size * measured.num_tokens
    return rates(marks, per_step=per_step, warm_up=WARM_UP)


def _trainer_model(measured: Measurement, base_model: str, config: TrainingConfig) -> Any:
    """Return the same model as a user of Trainer loads it: fp32 for full training, a bf16 base for
    LoRA."""
    folder = local_copy(base_model)
    if measured.task == "classification":
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(CLASSES), dtype=torch.float32, attn_implementation="sdpa"
        )
    is_lora = config.method == "lora"
    dtype = torch.bfloat16 if is_lora and config.gpus_per_worker else torch.float32
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    lm.config.use_cache = False
    if not is_lora:
        return lm
    return add_adapter(lm, r=config.lora_r, alpha=2 * config.lora_r, dropout=config.lora_dropout)


def _stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch of rows, which all have the same length."""
    batch = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def _validation(folder: Path, reduced: bool) -> Figure:
    """Measure the generated tokens per second of the second of two validations of an engine that
    has not been trained."""
    num_prompts = 2 if reduced else VALIDATION_PROMPTS
    max_new_tokens = 8 if reduced else VALIDATION_TOKENS
    task = training_task(
        saved_model(folder, "chat", "tiny" if reduced else "1b"),
        "chat",
        num_rows=2,
        num_tokens=64,
        num_validation=num_prompts,
        max_new_tokens=max_new_tokens,
    )
    config = training_config(reduced, zero_stage=0)
    with rank_variables():
        runtime = task.load_runtime()
        engine = build_engine(config, runtime)
        runtime.score(engine, config)
        begun = mark(0)
        runtime.score(engine, config)
        ended = mark(1)
        destroy_engine(engine)
    rate = num_prompts * max_new_tokens / (ended.wall - begun.wall)
    return Figure("validation_tokens_per_second", rate, ">= 2000", is_hardware=True)


def resumes(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Train five steps of each combination, export it, and resume it from its second step."""
    with process_group(), rank_variables():
        for task_name, method, stage, recomputes, offload in COMBINATIONS:
            base_model = saved_model(folder, task_name, "tiny" if reduced else "small")
            task = training_task(base_model, task_name, num_rows=RESUME_STEPS * 4, num_tokens=64)
            config = training_config(
                reduced,
                batch_size=4,
                learning_rate=LEARNING_RATES[task_name],
                checkpoint_interval_s=0,  # losses are read after each step
                zero_stage=stage,
                method=method,
                gradient_checkpointing=recomputes,
                offload=offload,
            )
            name = f"{task_name}, {method}, stage {stage}, offload {offload}"
            target = folder / "resumes" / name.replace(", ", "-")
            difference = _difference_after_resume(config, task.load_runtime(), folder=target)
            yield Figure(name, difference, RESUME_TOLERANCE)


def _difference_after_resume(
    config: TrainingConfig, runtime: TaskRuntime, *, folder: Path
) -> float:
    """Return the largest relative difference of the loss of a step between a resumed and an
    uninterrupted training, which writes a checkpoint on its way and is exported at its end."""
    saved = folder / "checkpoint"
    saved.mkdir(parents=True)
    engine = build_engine(config, runtime)
    uninterrupted = _losses(engine, config, runtime, checkpoint_folder=saved)
    export_weights(engine, config, runtime=runtime, folder=folder / "weights")
    destroy_engine(engine)
    engine, progress = checkpoint.resume(config, runtime, uri=saved.as_uri())
    assert progress.step == CHECKPOINT_AT
    resumed = _losses(engine, config, runtime, progress=progress)
    destroy_engine(engine)
    pairs = zip(resumed, uninterrupted[CHECKPOINT_AT:], strict=True)
    return max(abs(loss / before - 1) for loss, before in pairs)


def _losses(
    engine: Any,
    config: TrainingConfig,
    runtime: TaskRuntime,
    *,
    progress: Progress | None = None,
    checkpoint_folder: Path | None = None,
) -> list[float]:
    """Train from `progress` to the end, and return the loss of each step. Write a checkpoint after
    `CHECKPOINT_AT`."""
    sums = [progress.losses if progress else 0.0]  # of the losses of the epoch's steps so far

    def on_save(progress: Progress, engine: Any) -> None:
        if progress.step < RESUME_STEPS:
            sums.append(progress.losses)
        if progress.step == CHECKPOINT_AT and checkpoint_folder is not None:
            checkpoint.save(engine, folder=checkpoint_folder, progress=progress)

    callbacks = Callbacks(on_save=on_save)
    report = train(engine, config, runtime=runtime, callbacks=callbacks, progress=progress)
    sums.append(report.loss * RESUME_STEPS)
    return [after - before for before, after in pairwise(sums)]


def memory_8_ranks(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Compare the peak memory of rank 0 of 8 with the estimate."""
    return _memory(folder, reduced, world_size=8)


def memory_32_ranks(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Compare the peak memory of rank 0 of 32 with the estimate."""
    return _memory(folder, reduced, world_size=32)


class _Measured(Exception):
    """The steps are over; the validation is not needed."""


def _memory(folder: Path, reduced: bool, *, world_size: int) -> Iterator[Figure]:
    """Yield the peak of start and step of full training of 8B at stages 1 to 3, relative to
    `training.engine.memory_estimate`.

    The group is torch's fake process group: its collectives return at once and move no data. Rank 0
    has the memory of a real training, but its losses mean nothing. Parameters are fp32, or bf16 at
    a stage at which fp32 does not fit by the estimate. Nothing is measured without a GPU.
    """
    if reduced:
        return
    base_model = saved_model(folder, "chat", "8b")
    task = training_task(base_model, "chat", num_rows=2 * world_size, num_tokens=2048)
    shape = read_metadata(base_model, task=ChatData()).shape
    room = torch.cuda.get_device_properties(0).total_memory - GPU_PROCESS_BYTES
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    for stage in (1, 2, 3):
        for dtype in ("fp32", "bf16"):
            config = training_config(
                reduced,
                num_workers=world_size,
                zero_stage=stage,
                parameter_dtype=dtype,
                batch_size=world_size,
                gradient_checkpointing=True,
            )
            batch = BatchShape(2048, packed=True, autocast=True)
            memory = worker_memory(config, shape=shape, batch=batch, num_workers=world_size)
            estimate = memory.device_bytes - GPU_PROCESS_BYTES
            if estimate < room:
                peak = _peak_bytes(config, task.load_runtime())
                yield Figure(f"stage_{stage}_{dtype}_gib", peak / GIB)
                share = peak / estimate
                yield Figure(f"stage_{stage}_{dtype}_of_estimate", share, "<= 1", is_hardware=True)
                break


def _peak_bytes(config: TrainingConfig, runtime: TaskRuntime) -> float:
    """Return the peak of the start and of two steps; the moments of the optimizer exist from the
    end of the first step."""
    _free_memory()
    torch.cuda.reset_peak_memory_stats()

    def on_step(event: StepEvent) -> None:
        if event.step == event.num_steps:
            raise _Measured

    with rank_variables(world_size=config.max_workers):
        engine = build_engine(config, runtime)
        with suppress(_Measured, Diverged):  # gathered weights are not those of the model
            train(engine, config, runtime=runtime, callbacks=Callbacks(on_step=on_step))
    assert (engine.global_steps, engine.skipped_steps) == (2, 0)
    peak = float(torch.cuda.max_memory_allocated())
    destroy_engine(engine)
    return peak


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
