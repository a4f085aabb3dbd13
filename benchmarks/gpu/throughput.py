"""Tokens per second of training and of validation, measured in turn with transformers.Trainer on
the same rows."""

import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.gpu.models import (
    BERT_400M,
    BERT_TINY,
    LLAMA_1B,
    LLAMA_8B,
    LLAMA_TINY,
    Size,
    process_group,
    saved_model,
    training_task,
)
from benchmarks.gpu.rows import CLASSES
from benchmarks.rounds import Figures, take_turns
from benchmarks.training.trainer import RANK_VARIABLES
from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.data.task_data import CLASSIFICATION, ChatData
from tailorbird.models.lora import add_adapter
from tailorbird.models.metadata import read_metadata
from tailorbird.models.shape import ModelShape
from tailorbird.storage.node_cache import local_copy
from training.dataset import sampled_rows
from training.engine.deepspeed_private import destroy_engine
from training.loop import Callbacks, build_engine, train
from training.task import TaskRuntime, TrainingTask

PEAK_FLOPS = 989e12
"""Peak of an H100 SXM (and H200) in bf16 without sparsity."""
ROUNDS = 3
"""Rounds in which both training loops are measured, every second one in reverse order."""
FIRST_STEPS = 3
"""Steps before the measurement, in which kernels are selected and the allocator grows."""
VALIDATION_PROMPTS, VALIDATION_TOKENS = 64, 128


@dataclass(frozen=True)
class Case:
    """A training whose rate is measured."""

    name: str
    section: str  # of part a
    task: Literal["chat", "classification"]
    size: Size
    config: TrainingConfig
    num_tokens: int  # tokens of each row
    num_steps: int
    validates: bool = False  # also measure the validation


def cases(reduced: bool) -> tuple[Case, ...]:
    """Return the cases with their models; in the reduced form with tiny models and short rows."""

    def config(**fields: Any) -> TrainingConfig:
        return TrainingConfig(
            num_workers=1, zero_stage=0, epochs=1, gpus_per_worker=0 if reduced else 1, **fields
        )

    if reduced:
        full, lora = (
            config(batch_size=4),
            config(batch_size=4, method="lora", gradient_checkpointing=True),
        )
        return (
            Case("tiny_full", "1.2b", "chat", LLAMA_TINY, full, 64, num_steps=6, validates=True),
            Case("tiny_lora", "8b", "chat", LLAMA_TINY, lora, 64, num_steps=6),
            Case("tiny_encoder", "encoder", "classification", BERT_TINY, full, 64, num_steps=6),
        )
    # 8,192 tokens in a micro-batch of a chat model, 16,384 in one of the encoder.
    short = config(batch_size=8, batch_tokens=8192)
    long = config(batch_size=2, batch_tokens=8192, gradient_checkpointing=True)
    lora = config(batch_size=2, method="lora", gradient_checkpointing=True)
    encoder_128, encoder_512 = config(batch_size=128), config(batch_size=32)
    return (
        Case("1.2b_full_2k", "1.2b", "chat", LLAMA_1B, short, 2048, num_steps=16, validates=True),
        Case("1.2b_full_8k", "1.2b", "chat", LLAMA_1B, long, 8192, num_steps=12),
        Case("8b_lora_4k", "8b", "chat", LLAMA_8B, lora, 4096, num_steps=10),
        Case(
            "0.4b_encoder_128",
            "encoder",
            "classification",
            BERT_400M,
            encoder_128,
            128,
            num_steps=48,
        ),
        Case(
            "0.4b_encoder_512",
            "encoder",
            "classification",
            BERT_400M,
            encoder_512,
            512,
            num_steps=48,
        ),
    )


def measure_section(section: str, folder: Path, reduced: bool) -> Iterator[dict[str, float]]:
    """Yield the figures of each case of a section of part a; their names begin with that of the
    case.

    The base models remain in `folder`.
    """
    with process_group():  # one for all cases, because DeepSpeed keeps the first one of a process
        for case in cases(reduced):
            if case.section == section:
                figures = measure_case(case, saved_model(folder, case.task, case.size))
                yield {f"{case.name}.{name}": value for name, value in figures.items()}


def measure_case(case: Case, base_model: str) -> dict[str, float]:
    """Return the medians over `ROUNDS` rounds of the tokens per second, and the model FLOPs
    utilization (MFU).

    `ratio_to_trainer` is the median of the ratios of the rounds, and `ratio_spread` their largest
    minus their smallest one: the resolution of this measurement.
    """
    task = _task(case, base_model)
    runtime = task.load_runtime()
    variants = {
        "ours": partial(measure_ours, case, runtime),
        "trainer": partial(_trainer, case, task, runtime),
    }
    ours, theirs = (
        [figures["tokens_per_second"] for figures in rounds]
        for rounds in take_turns(variants, rounds=ROUNDS).values()
    )
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    data = CLASSIFICATION if case.task == "classification" else ChatData()
    flops = flops_per_token(case, read_metadata(base_model, task=data).shape)
    figures = {
        "tokens_per_second": median(ours),
        "trainer_tokens_per_second": median(theirs),
        "rounds": float(len(ratios)),
        "ratio_to_trainer": median(ratios),
        "ratio_spread": max(ratios) - min(ratios),
        "mfu": median(ours) * flops / PEAK_FLOPS,
    }
    return figures | (measure_validation(case, runtime) if case.validates else {})


def flops_per_token(case: Case, shape: ModelShape) -> float:
    """Return the FLOPs of a token's forward and backward pass, without recomputation.

    Each weight of a matrix product takes 2 FLOPs in the forward pass and, if it is trained, 4 in
    the backward pass, otherwise 2. Attention takes 12 FLOPs for each layer, feature and attended
    token (Chowdhery et al., PaLM, 2022, appendix B); a causal model attends to half of the tokens.
    """
    passes = 6 if case.config.method == "full" else 4
    attended = case.num_tokens / 2 if case.task == "chat" else case.num_tokens
    # `num_linear` lacks the output weights if the input embedding shares them.
    tied = shape.vocabulary * shape.hidden if case.size.get("tie_word_embeddings") else 0
    return passes * (shape.num_linear + tied) + 12 * shape.num_layers * shape.hidden * attended


def measure_ours(case: Case, runtime: TaskRuntime) -> Figures:
    """Return the tokens per second of `training.loop.train` in this process."""
    engine = build_engine(case.config, runtime)
    marks = [(0, _now())]

    def on_step(event: StepEvent) -> None:
        marks.append((event.step, _now()))
        if event.step == event.num_steps:
            raise _Measured

    with suppress(_Measured):  # before the validation
        train(engine, case.config, runtime=runtime, callbacks=Callbacks(on_step=on_step))
    destroy_engine(engine)
    del engine
    _free_memory()
    return {"tokens_per_second": _rate(case, marks)}


class _Measured(Exception):
    """All steps are measured; the rest of the epoch is not needed."""


def measure_validation(case: Case, runtime: TaskRuntime) -> dict[str, float]:
    """Return the generated tokens per second of the second of two validations of an engine that has
    not been trained.

    No answer ends before its limit; see `save_chat_model`.
    """
    engine = build_engine(case.config, runtime)
    runtime.score(engine, case.config)
    started = _now()
    runtime.score(engine, case.config)
    seconds = _now() - started
    destroy_engine(engine)
    del engine
    _free_memory()
    num_tokens = len(runtime.task.validation) * runtime.task.prompting.max_new_tokens  # type: ignore[attr-defined]
    return {"validation_tokens_per_second": num_tokens / seconds}


def _task(case: Case, base_model: str) -> TrainingTask:
    reduced = case.config.gpus_per_worker == 0
    return training_task(
        base_model,
        case.task,
        num_rows=case.num_steps * case.config.batch_size,
        num_tokens=case.num_tokens,
        num_validation=VALIDATION_PROMPTS if case.validates and not reduced else 2,
        max_new_tokens=VALIDATION_TOKENS if case.validates and not reduced else 8,
    )


def _trainer(case: Case, task: TrainingTask, runtime: TaskRuntime) -> Figures:
    """Return the tokens per second of transformers.Trainer with bf16, sdpa, fused AdamW and the
    same checkpointing."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    marks: list[tuple[int, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step in (FIRST_STEPS, case.num_steps):
                marks.append((state.global_step, _now()))

    config, on_gpu = case.config, case.config.gpus_per_worker == 1
    model, rows = _trainer_model(case, task), _trainer_rows(runtime)
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder, _without_rank_variables():
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.batch_size // (2 if config.batch_tokens else 1),
            gradient_accumulation_steps=2 if config.batch_tokens else 1,
            max_steps=case.num_steps,
            learning_rate=config.learning_rate,
            bf16=on_gpu,
            optim="adamw_torch_fused",
            gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            dataloader_num_workers=2,
            use_cpu=not on_gpu,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        marks.append((0, _now()))
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=_stacked,
            callbacks=[Clock()],
        ).train()
    del model
    _free_memory()
    return {"tokens_per_second": _rate(case, marks)}


@contextmanager
def _without_rank_variables() -> Iterator[None]:
    """Unset the variables of the process group, with which Trainer would start a distributed
    training."""
    values = {name: os.environ.pop(name) for name in RANK_VARIABLES}
    try:
        yield
    finally:
        os.environ.update(values)


def _trainer_model(case: Case, task: TrainingTask) -> Any:
    """Return the same model as a user of Trainer loads it: fp32 for full training, a bf16 base for
    LoRA."""
    folder = local_copy(task.base_model)
    if case.task == "classification":
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(CLASSES), dtype=torch.float32, attn_implementation="sdpa"
        )
    lora = case.config.method == "lora"
    dtype = torch.bfloat16 if lora and case.config.gpus_per_worker else torch.float32
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    lm.config.use_cache = False
    config = case.config
    return (
        add_adapter(lm, r=config.lora_r, alpha=2 * config.lora_r, dropout=config.lora_dropout)
        if lora
        else lm
    )


def _trainer_rows(runtime: TaskRuntime) -> list[dict[str, Any]]:
    """Return the tokens of the training rows with the targets of `training.loop`."""
    window = sampled_rows(runtime.train)
    if window.labels is not None:
        labels = window.labels.tolist()
        return [
            {"input_ids": tokens, "labels": label}
            for tokens, label in zip(window.tokens(range(len(window))), labels, strict=True)
        ]
    return [
        {"input_ids": row.ids, "labels": np.where(row.assistant_mask, row.ids, -100).tolist()}
        for row in window.conversations(range(len(window)))
    ]


def _stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch of rows, which all have the same length."""
    batch = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def _rate(case: Case, marks: list[tuple[int, float]]) -> float:
    """Return the tokens per second between the first mark after the warm-up and the last mark.

    `train` reports steps about once a second. If it ran for less than that, as in the reduced form,
    the measurement includes the first steps.
    """
    after_warm_up = [mark for mark in marks[:-1] if mark[0] >= FIRST_STEPS]
    (first, begin), (last, end) = (after_warm_up or marks)[0], marks[-1]
    return (last - first) * case.config.batch_size * case.num_tokens / (end - begin)


def _now() -> float:
    """Return the time at which the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
