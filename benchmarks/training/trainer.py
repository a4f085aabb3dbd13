"""Process environment of the training benchmarks, and transformers.Trainer with its defaults."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from tailorbird.config.training import TrainingConfig
from tailorbird.models.pretrained import inference_dtype

HAS_BF16 = inference_dtype() == torch.bfloat16
"""True if the machine supports bfloat16. On other machines, bfloat16 takes many times as long as
fp32."""
RESTARTED = "TAILORBIRD_BENCHMARK_RESTARTED"
RANK_VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
"""Variables that Ray Train sets for DeepSpeed. With them, Trainer would start a distributed
training."""


def be_a_worker(config: TrainingConfig) -> None:
    """Restart this process with the environment of a training worker, unless it was restarted
    already.

    All variants are measured in this environment. glibc reads its malloc settings only when a
    process starts, and the time of a step depends on them.
    """
    if os.environ.pop(RESTARTED, None) is None:
        from training.trainer import worker_environment  # not at the top, because it imports Ray

        os.execve(
            sys.executable,
            sys.orig_argv,
            os.environ | worker_environment(config) | {RESTARTED: "1"},
        )
    del os.environ["GLIBC_TUNABLES"]  # child processes are not training workers


def run_trainer(
    model: Any, rows: Sequence[dict[str, Any]], *, collator: Any, config: TrainingConfig, bf16: bool
) -> tuple[float, float]:
    """Train with the config's batch size and epochs, and return the CPU-seconds and seconds of the
    training steps."""
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
    Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[clock]
    ).train()
    os.environ.update(set_before)
    return clock.ended[0] - clock.started[0], clock.ended[1] - clock.started[1]
