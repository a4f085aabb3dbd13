"""Overhead of training, compared with a bare PyTorch loop and with transformers.Trainer.

    python -m benchmarks.training.training_overhead

All variants train the same classifier (MiniLM with a head of zeros) on the same ICD-10-CM terms:
one epoch, batch size 32, one process with one torch thread and a worker's environment.

- `finetune`: `training.loop.train` with a DeepSpeed engine at stage 0 in a process group with one
  rank, as in a worker of `training.trainer.finetune`, with gradient clipping, schedule and reports.
- `finetune, stage 1`: the same with ZeRO's optimizer.
- `bare`: the same model, batches and precision in a loop with `torch.optim.AdamW` and its defaults,
  and nothing else.
- `bare, fused`: the same with the fused AdamW.
- `Trainer`: transformers.Trainer with its defaults (fp32, its own order of rows, rows padded to the
  longest of a batch) except for the batch size, without saving.
- `Trainer, bf16`: the same with `bf16=True`, if the machine supports bfloat16.

Only training steps count, without loading, validation and checkpoints. Rows per CPU-second are
those of the process with all its threads. At the end, `finetune` runs once through Ray and S3 on a
separate stack, as a user calls it, to compare the rows per CPU-second of its worker.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from benchmarks.material import cpu_reader, icd10_task, own_stack
from benchmarks.rounds import finish, medians, print_table, take_turns
from benchmarks.training.trainer import HAS_BF16, RANK_VARIABLES, be_a_worker, run_trainer
from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.data.tokenize import collate, load_tokenizer
from tailorbird.models.pretrained import inference_dtype
from tailorbird.storage.node_cache import local_copy
from training.classification_task import ClassifierRuntime
from training.dataset import epoch_batches, sampled_rows
from training.engine.deepspeed_private import destroy_engine
from training.loop import Callbacks, build_engine, train
from training.reports import EpochReport

NUM_ROWS, NUM_ROUNDS = 640, 5
TRAINING = TrainingConfig(zero_stage=0, num_workers=1, epochs=1, batch_size=32)
BOUNDS = {
    "cpu_rate_to_bare": ">= 1.0",
    "cpu_rate_to_bare_fused": ">= 0.75",
    "cpu_rate_of_stage_1_to_bare_fused": ">= 0.5",
    "rate_to_trainer": ">= 2.2",
    "rate_to_trainer_bf16": ">= 1.6",
}


def main() -> None:
    """Print the variants, then one line of JSON."""
    be_a_worker(TRAINING)
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-") as folder,
        own_stack(Path(folder)) as base_model,
    ):
        task = icd10_task(base_model, num_rows=NUM_ROWS)
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        runtime = task.load_runtime()
        variants = {
            "finetune": lambda: _ours(runtime),
            "finetune, stage 1": lambda: _ours(runtime, zero_stage=1),
            "bare": lambda: _bare(runtime),
            "bare, fused": lambda: _bare(runtime, fused=True),
            "Trainer": lambda: _trainer(runtime),
        }
        if HAS_BF16:
            variants["Trainer, bf16"] = lambda: _trainer(runtime, bf16=True)
        measured = take_turns(variants, rounds=NUM_ROUNDS)
        dist.destroy_process_group()
        through_ray = _through_ray(task)
    rows = {name: medians(rounds) for name, rounds in measured.items()}
    print_table(
        f"Training, medians of {NUM_ROUNDS} rounds of {NUM_ROWS} rows",
        rows | {"finetune, through Ray": through_ray},
    )
    figures = {
        "cpu_rate_to_bare": _ratio(measured, "bare", "rows per CPU-second"),
        "cpu_rate_to_bare_fused": _ratio(measured, "bare, fused", "rows per CPU-second"),
        "cpu_rate_of_stage_1_to_bare_fused": _ratio(
            measured, "bare, fused", "rows per CPU-second", ours="finetune, stage 1"
        ),
        "rate_to_trainer": _ratio(measured, "Trainer", "rows per second"),
        "cpu_rate_to_trainer": _ratio(measured, "Trainer", "rows per CPU-second"),
        "cpu_rate_through_ray_to_in_process": through_ray["rows per CPU-second"]
        / rows["finetune"]["rows per CPU-second"],
    }
    if HAS_BF16:
        figures["rate_to_trainer_bf16"] = _ratio(measured, "Trainer, bf16", "rows per second")
    finish(
        "training_overhead",
        figures,
        bounds={name: bound for name, bound in BOUNDS.items() if name in figures},
    )


def _ratio(measured: Any, other: str, name: str, *, ours: str = "finetune") -> float:
    """Return the median of the ratios within each round, because a disturbance affects both
    variants of a round."""
    rounds = zip(measured[ours], measured[other], strict=True)
    return medians([{"ratio": ours[name] / theirs[name]} for ours, theirs in rounds])["ratio"]


def _rates(cpu: float, wall: float) -> dict[str, float]:
    return {"rows per CPU-second": NUM_ROWS / cpu, "rows per second": NUM_ROWS / wall}


@contextmanager
def _rank_variables() -> Iterator[None]:
    """Set the variables that Ray Train sets for DeepSpeed, within the block only (see
    RANK_VARIABLES)."""
    os.environ.update(RANK_VARIABLES)
    try:
        yield
    finally:
        for name in RANK_VARIABLES:
            del os.environ[name]


def _ours(runtime: ClassifierRuntime, *, zero_stage: int = 0) -> dict[str, float]:
    config = TRAINING.model_copy(update={"zero_stage": zero_stage})
    ended: list[tuple[float, float]] = []

    def on_step(report: StepEvent) -> None:
        if report.step == report.num_steps:
            ended.append((time.process_time(), time.perf_counter()))

    def on_epoch(_report: EpochReport, _engine: Any) -> bool:
        return True

    with _rank_variables():
        engine = build_engine(config, runtime)
        cpu, wall = time.process_time(), time.perf_counter()
        train(
            engine, config, runtime=runtime, callbacks=Callbacks(on_step=on_step, on_epoch=on_epoch)
        )
        destroy_engine(engine)
    return _rates(ended[-1][0] - cpu, ended[-1][1] - wall)


def _bare(runtime: ClassifierRuntime, *, fused: bool | None = None) -> dict[str, float]:
    torch.manual_seed(TRAINING.seed)
    model = runtime.build(TRAINING)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING.learning_rate, fused=fused)
    window, dtype = sampled_rows(runtime.train), inference_dtype()
    assert window.labels is not None
    cpu, wall = time.process_time(), time.perf_counter()
    for rows in epoch_batches(
        window.lengths, batch_size=TRAINING.batch_size, seed=TRAINING.seed, epoch=0
    ):
        input_ids, attention_mask = collate(window.tokens(rows), pad_id=runtime.pad_id)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(input_ids, attention_mask)
        optimizer.zero_grad()
        loss = cross_entropy(logits, torch.from_numpy(window.labels[rows]))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _rates(time.process_time() - cpu, time.perf_counter() - wall)


def _trainer(runtime: ClassifierRuntime, *, bf16: bool = False) -> dict[str, float]:
    from transformers import AutoModelForSequenceClassification
    from transformers import DataCollatorWithPadding as Collator

    base = local_copy(runtime.task.base_model)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(runtime.task.classes)
    )
    window = sampled_rows(runtime.train)
    assert window.labels is not None
    rows = [
        {"input_ids": tokens, "labels": int(label)}
        for tokens, label in zip(window.tokens(range(len(window))), window.labels, strict=True)
    ]
    return _rates(
        *run_trainer(
            model, rows, collator=Collator(load_tokenizer(base)), config=TRAINING, bf16=bf16
        )
    )


def _through_ray(task: Any) -> dict[str, float]:
    """Return the rates of the worker process between its first and its last step event."""
    from training.trainer import (
        finetune,
    )  # Import Ray after the stack has started; it reads its token on import.

    with cpu_reader() as (queue, read_events):
        finetune(TRAINING, task=task, uri="s3://models/training-overhead", events=queue)
        steps = [(row.event, row) for row in read_events() if isinstance(row.event, StepEvent)]
    (first, begin), (last, end) = steps[0], steps[-1]
    rows = (last.step - first.step) * TRAINING.batch_size
    return {
        "rows per CPU-second": rows / (end.cpu - begin.cpu),
        "rows per second": rows / (end.time - begin.time),
    }


if __name__ == "__main__":
    main()
