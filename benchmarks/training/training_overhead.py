"""Overhead of training, compared with a bare PyTorch loop and with transformers.Trainer.

    python -m benchmarks.training.training_overhead [classification | chat]

All variants train the same model in one process with a worker's environment, for one epoch, and
only training steps count, without loading, validation and checkpoints.

The classifier is MiniLM with a head of zeros on ICD-10-CM terms, with batches of 32 and one torch
thread. Rows per CPU-second are those of the process with all its threads:

- `finetune`: `training.loop.train` with a DeepSpeed engine at stage 0 in a process group with one
  rank, as in a worker of `training.trainer.finetune`, with gradient clipping, schedule and reports.
- `finetune, stage 1`: the same with ZeRO's optimizer.
- `bare`: the same model, batches and precision in a loop with `torch.optim.AdamW` and its defaults,
  and nothing else.
- `bare, fused`: the same with the fused AdamW.
- `Trainer`: transformers.Trainer with its defaults (fp32, its own order of rows, rows padded to the
  longest of a batch) except for the batch size, without saving.
- `Trainer, bf16`: the same with `bf16=True`, if the machine supports bfloat16.

For chat, `finetune`, `Trainer` and `Trainer, bf16` fully fine-tune SmolLM2-135M-Instruct on the
same terms with their codes and titles, with batches of 16 and two torch threads. The loss of
Trainer is on the answers only, too. The rate counts tokens without padding.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import (
    CHAT_MODEL,
    ENCODER,
    Figures,
    finish_ratios,
    process_group,
    rank_variables,
    stage,
    take_turns,
)
from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import collate, labels_of, load_tokenizer
from tailorbird.models.pretrained import inference_dtype, load_causal
from tailorbird.registry.versions import Prompting
from tailorbird.storage.node_cache import local_copy
from tests import build
from training.chat_task import ChatRuntime, ChatTrainingTask
from training.classification_task import ClassificationTrainingTask, ClassifierRuntime
from training.dataset import epoch_batches, sampled_rows
from training.engine.deepspeed_private import destroy_engine
from training.loop import Callbacks, build_engine, train
from training.reports import EpochReport
from training.task import TaskRuntime

MAX_LENGTH = 64
NUM_VALIDATION_ROWS = 256
NUM_ROWS = 640
NUM_CHAT_ROWS = 96
TRAINING = TrainingConfig(zero_stage=0, num_workers=1, epochs=1, batch_size=32)
CHAT_TRAINING = TRAINING.model_copy(update={"cpus_per_worker": 2, "batch_size": 16})
TASKS = {"classification": TRAINING, "chat": CHAT_TRAINING}
MODULE = "benchmarks.training.training_overhead"
HAS_BF16 = inference_dtype() == torch.bfloat16
"""True if the machine supports bfloat16. On other machines, bfloat16 takes many times as long as
fp32."""
WALL = "per second"
CPU = "per CPU-second"
RATIOS = {
    "cpu_rate_to_bare": ("finetune", "bare", CPU),
    "cpu_rate_to_bare_fused": ("finetune", "bare, fused", CPU),
    "cpu_rate_of_stage_1_to_bare_fused": ("finetune, stage 1", "bare, fused", CPU),
    "rate_to_trainer": ("finetune", "Trainer", WALL),
    "rate_to_trainer_bf16": ("finetune", "Trainer, bf16", WALL),
}
"""Figures, with the two variants and the rate that they compare."""
BOUNDS = {
    "cpu_rate_to_bare": ">= 1.0",
    "cpu_rate_to_bare_fused": ">= 0.75",
    "cpu_rate_of_stage_1_to_bare_fused": ">= 0.5",
    "rate_to_trainer": ">= 2.2",
    "rate_to_trainer_bf16": ">= 1.6",
}
CHAT_BOUNDS = {"rate_to_trainer": ">= 2.0"}


def main(task: str) -> None:
    """Print the variants, then one line of JSON for each task."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder, process_group():
        if task == "classification":
            _compare_classifiers(Path(folder).as_uri())
        else:
            _compare_chat(Path(folder).as_uri())


def _compare_classifiers(registry: str) -> None:
    torch.set_num_threads(1)
    runtime = icd10_task(stage(ENCODER, registry=registry), num_rows=NUM_ROWS).load_runtime()
    variants: dict[str, Callable[[], Figures]] = {
        "finetune": partial(_finetune, runtime, TRAINING, NUM_ROWS),
        "finetune, stage 1": partial(
            _finetune, runtime, TRAINING.model_copy(update={"zero_stage": 1}), NUM_ROWS
        ),
        "bare": partial(_bare, runtime, is_fused=None),
        "bare, fused": partial(_bare, runtime, is_fused=True),
        "Trainer": partial(_classifier_trainer, runtime, bf16=False),
    }
    if HAS_BF16:
        variants["Trainer, bf16"] = partial(_classifier_trainer, runtime, bf16=True)
    measured = take_turns(variants, rounds=5)
    finish_ratios("training_overhead", measured, ratios=RATIOS, bounds=BOUNDS)


def _compare_chat(registry: str) -> None:
    torch.set_num_threads(CHAT_TRAINING.cpus_per_worker)
    tables = icd10.build_coder()
    task = ChatTrainingTask(
        base_model=stage(CHAT_MODEL, registry=registry),
        train=_conversations(tables["train"].slice(0, NUM_CHAT_ROWS)),
        validation=_conversations(tables["validation"].slice(0, 1)),
        max_length=128,
        metric="token_f1",
        prompting=Prompting(system="Code in ICD-10-CM.", max_new_tokens=1),
    )
    runtime = task.load_runtime()
    num_tokens = float(sampled_rows(runtime.train).lengths.sum())
    variants: dict[str, Callable[[], Figures]] = {
        "finetune": partial(_finetune, runtime, CHAT_TRAINING, num_tokens),
        "Trainer": partial(_chat_trainer, runtime, num_tokens, bf16=False),
    }
    if HAS_BF16:
        variants["Trainer, bf16"] = partial(_chat_trainer, runtime, num_tokens, bf16=True)
    measured = take_turns(variants, rounds=3)
    finish_ratios("chat_training", measured, ratios=RATIOS, bounds=CHAT_BOUNDS)


def icd10_task(base_model: str, *, num_rows: int) -> ClassificationTrainingTask:
    """Return a task with a fixed random sample of the training rows and of the validation rows."""
    tables = icd10.build()
    return ClassificationTrainingTask(
        base_model=base_model,
        train=_sample(tables["train"], num_rows),
        validation=_sample(tables["validation"], NUM_VALIDATION_ROWS),
        classes=labels_of(tables["train"]["chapter"].to_pylist()),
        max_length=MAX_LENGTH,
    )


def _sample(table: pa.Table, size: int) -> Rows:
    chosen = np.random.default_rng(0).choice(len(table), size, replace=False)
    sample = table.take(np.sort(chosen))
    return build.rows(sample["text"].to_pylist(), sample["chapter"].to_pylist())


def _conversations(table: pa.Table) -> Rows:
    return build.rows(table["prompt"].to_pylist(), table["completion"].to_pylist(), chat=True)


@dataclass(frozen=True)
class Mark:
    """The clocks of CPU time and wall time after a step, when a GPU has finished its work."""

    step: int
    cpu: float
    wall: float


def mark(step: int) -> Mark:
    """Return the clocks now."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Mark(step, cpu=time.process_time(), wall=time.perf_counter())


def rates(marks: list[Mark], *, per_step: float, warm_up: int = 0) -> dict[str, float]:
    """Return the rates between the first mark after the warm-up and the last mark; a step has
    `per_step` rows or tokens.

    `train` reports steps about once a second. If it ran for less than that, the rates include the
    first steps.
    """
    later = [each for each in marks[:-1] if each.step >= warm_up]
    first = (later or marks)[0]
    last = marks[-1]
    number = (last.step - first.step) * per_step
    return {CPU: number / (last.cpu - first.cpu), WALL: number / (last.wall - first.wall)}


def finetune(runtime: TaskRuntime, config: TrainingConfig) -> tuple[list[Mark], list[EpochReport]]:
    """Train with `training.loop.train`; return the marks of its steps, and its reports."""
    reports: list[EpochReport] = []

    def on_step(event: StepEvent) -> None:
        marks.append(mark(event.step))

    def on_epoch(report: EpochReport, _engine: Any) -> bool:
        reports.append(report)
        return True

    callbacks = Callbacks(on_step=on_step, on_epoch=on_epoch)
    with rank_variables():
        engine = build_engine(config, runtime)
        marks = [mark(0)]
        train(engine, config, runtime=runtime, callbacks=callbacks)
        destroy_engine(engine)
    return marks, reports


def run_trainer(
    model: Any, rows: list[dict[str, Any]], collator: Any, *, warm_up: int = 0, **arguments: Any
) -> list[Mark]:
    """Train one epoch with transformers.Trainer and these `TrainingArguments`; return the marks of
    the start, the last step of the warm-up and the last step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    marks: list[Mark] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append(mark(0))

        def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step in (warm_up, state.max_steps):
                marks.append(mark(state.global_step))

    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **arguments,
        )
        trainer = Trainer(
            model=model,
            args=settings,
            train_dataset=rows,
            data_collator=collator,
            callbacks=[Clock()],
        )
        trainer.train()
    return marks


def trainer_rows(runtime: TaskRuntime) -> list[dict[str, Any]]:
    """Return the tokens of the training rows with the targets of `training.loop`."""
    window = sampled_rows(runtime.train)
    rows: list[dict[str, Any]] = []
    if window.labels is not None:
        for tokens, label in zip(window.tokens(range(len(window))), window.labels, strict=True):
            rows.append({"input_ids": tokens, "labels": int(label)})
        return rows
    for row in window.conversations(range(len(window))):
        labels = np.where(row.assistant_mask, row.ids, -100).tolist()
        rows.append({"input_ids": row.ids, "labels": labels})
    return rows


def _finetune(runtime: TaskRuntime, config: TrainingConfig, number: float) -> Figures:
    """Return the rates for a number of rows or tokens."""
    marks, _ = finetune(runtime, config)
    return rates(marks, per_step=number / marks[-1].step)


def _trainer(
    model: Any,
    runtime: TaskRuntime,
    collator: Any,
    *,
    config: TrainingConfig,
    bf16: bool,
    number: float,
) -> Figures:
    """Return the same for transformers.Trainer with its defaults."""
    marks = run_trainer(
        model,
        trainer_rows(runtime),
        collator,
        per_device_train_batch_size=config.batch_size,
        use_cpu=True,
        bf16=bf16,
    )
    return rates(marks, per_step=number / marks[-1].step)


def _bare(runtime: ClassifierRuntime, *, is_fused: bool | None) -> Figures:
    torch.manual_seed(TRAINING.seed)
    model = runtime.build(TRAINING)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING.learning_rate, fused=is_fused)
    window = sampled_rows(runtime.train)
    assert window.labels is not None
    marks = [mark(0)]
    for rows in epoch_batches(
        window.lengths, batch_size=TRAINING.batch_size, seed=TRAINING.seed, epoch=0
    ):
        input_ids, attention_mask = collate(window.tokens(rows), pad_id=runtime.pad_id)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=HAS_BF16):
            logits = model(input_ids, attention_mask)
        optimizer.zero_grad()
        loss = cross_entropy(logits, torch.from_numpy(window.labels[rows]))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return rates([*marks, mark(1)], per_step=NUM_ROWS)


def _classifier_trainer(runtime: ClassifierRuntime, *, bf16: bool) -> Figures:
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    base = local_copy(runtime.task.base_model)
    num_labels = len(runtime.task.classes)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=num_labels)
    collator = DataCollatorWithPadding(load_tokenizer(base))
    return _trainer(model, runtime, collator, config=TRAINING, bf16=bf16, number=NUM_ROWS)


def _chat_trainer(runtime: ChatRuntime, num_tokens: float, *, bf16: bool) -> Figures:
    from transformers import DataCollatorForSeq2Seq

    base = local_copy(runtime.task.base_model)
    model = load_causal(base)
    collator = DataCollatorForSeq2Seq(load_tokenizer(base))
    return _trainer(model, runtime, collator, config=CHAT_TRAINING, bf16=bf16, number=num_tokens)


if __name__ == "__main__":
    # Only in this process, because it imports Ray.
    from training.trainer import worker_environment

    for each in sys.argv[1:] or TASKS:
        # glibc reads its malloc settings only when a process starts, and the time of a step depends
        # on them.
        subprocess.run(
            [sys.executable, "-c", f"from {MODULE} import main; main({each!r})"],
            env=os.environ | worker_environment(TASKS[each]),
            check=True,
        )
