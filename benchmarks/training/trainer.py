"""The process that the training benchmarks measure in, and transformers.Trainer with its defaults, alone in it."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from tailorbird.config.training import TrainingConfig
from tailorbird.models.loading import inference_dtype

HAS_BF16 = inference_dtype() == torch.bfloat16
"""Whether the machine computes in it; another would take many times as long with it as without."""
BEGUN_ANEW = "TAILORBIRD_BENCHMARK_BEGUN_ANEW"
RANK_VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
"""What Ray Train sets for DeepSpeed; with them, Trainer would take the run for a distributed one."""


def be_a_worker(config: TrainingConfig) -> None:
    """Begins this process anew with the environment of a worker of ours, unless it has done so: all variants are
    measured in it. glibc reads its malloc settings at a process's start only, and a step's time depends on them."""
    if os.environ.pop(BEGUN_ANEW, None) is None:
        from training.trainer import worker_environment  # Ray reads how to authenticate when imported: not before that

        os.execve(sys.executable, sys.orig_argv, os.environ | worker_environment(config) | {BEGUN_ANEW: "1"})
    del os.environ["GLIBC_TUNABLES"]  # this process has it; what it starts is no worker


def run_trainer(
    model: Any, rows: Sequence[dict[str, Any]], *, collator: Any, config: TrainingConfig, bf16: bool
) -> tuple[float, float]:
    """CPU-seconds and seconds of the training steps, with the config's batch size and epochs; nothing is saved."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.process_time(), time.perf_counter()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.process_time(), time.perf_counter()

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.epochs,
        use_cpu=True,
        bf16=bf16,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    set_before = {name: os.environ.pop(name) for name in RANK_VARIABLES if name in os.environ}
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[clock]).train()
    os.environ.update(set_before)
    return clock.ended[0] - clock.started[0], clock.ended[1] - clock.started[1]
