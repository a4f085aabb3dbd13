"""Memory of a training worker, compared with `training.engine.memory_estimate`.

    python -m benchmarks.training.memory

Each case builds an engine for a language model with random weights, trains two steps and validates.
The tensors of rank 0 of two are counted exactly, on CPU. Only rank 0 runs, in torch's fake process
group, whose collectives do nothing. Base weights are stored in bf16 and mapped from a file, which
takes no memory of the process and is not counted.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu.models import saved_model, training_task
from benchmarks.harness import RANK_VARIABLES, finish, print_table
from tailorbird.config.training import TrainingConfig
from tailorbird.models.metadata import shape_of
from tailorbird.models.pretrained import inference_dtype, load_causal
from tailorbird.models.shape import ModelShape
from tailorbird.storage.node_cache import local_copy
from tests import build
from tests.small_chat import tokenizer
from tests.tracked_memory import TrackedMemory
from training.batch import Batch
from training.chat_task import ChatRuntime, ChatTrainingTask
from training.engine.deepspeed_private import destroy_engine
from training.engine.memory_estimate import (
    ANSWERED_ROWS,
    BatchShape,
    activation_bytes,
    validation_bytes,
    worker_memory,
)
from training.loop import build_engine, train
from training.task import Diverged

NUM_RANKS = 2
LENGTH = 256
PROMPT = 15
MAX_NEW_TOKENS = 4
"""Tokens of a validation row: its prompt with the template, and its answer. With longer prompts, a
validation at stage 3 needs more than a step; the unit tests of `synced_generation` measure it
without an engine."""
BUCKETS = {"full": 1_000_000, "lora": 100_000}
"""Parameters in a buffer for gradients, by method: fewer than are trained. DeepSpeed's default is
larger than these models. The unused part of a buffer takes no memory on CPU, but would be counted.
"""
MIB = 1 << 20
BOUNDS = {"smallest_ratio": ">= 1", "largest_ratio": "<= 2"}
OFFLOADS = [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
"""Stages and what is offloaded. Without a GPU, host and device are one memory, and nothing is
page-locked."""


@dataclass(frozen=True)
class Case:
    """A training whose memory is measured."""

    size: str
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        return ", ".join([self.size, *(f"{name} {value}" for name, value in self.fields.items())])

    @property
    def config(self) -> TrainingConfig:
        values = {"num_workers": NUM_RANKS, "batch_size": NUM_RANKS, "epochs": 1}
        bucket = BUCKETS[self.fields.get("method", "full")]
        options = {"deepspeed": {"zero_optimization": {"reduce_bucket_size": bucket}}}
        return TrainingConfig.model_validate(values | options | self.fields)


def cases() -> list[Case]:
    """Return every combination of the settings, and offload."""
    chosen = []
    for size, dtype, recomputes, method, stage in product(
        ("1m", "30m"), ("fp32", "bf16"), (False, True), ("full", "lora"), range(4)
    ):
        fields = {"zero_stage": stage, "method": method, "gradient_checkpointing": recomputes}
        chosen.append(Case(size, fields | {"parameter_dtype": dtype}))
    for method, dtype, (stage, offload) in product(("full", "lora"), ("fp32", "bf16"), OFFLOADS):
        fields = {"zero_stage": stage, "method": method, "parameter_dtype": dtype}
        chosen.append(Case("30m", fields | {"offload": offload}))
    return chosen


class _Runtime(ChatRuntime):
    """A runtime that accepts the losses of the fake group, whose gathered weights are not those of
    the model."""

    def loss(self, engine: Any, config: TrainingConfig, batch: Batch) -> torch.Tensor:
        return torch.nan_to_num(super().loss(engine, config, batch))

    def score(self, engine: Any, config: TrainingConfig) -> float:
        with suppress(Diverged):
            super().score(engine, config)
        return 0.0


def main() -> None:
    """Print the cases, then one line of JSON."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        rows = measure(cases(), folder=Path(folder))
    print_table(f"MiB of rank 0, rows of {LENGTH} tokens, {inference_dtype()}", rows)
    ratios = [figures["estimate / peak"] for figures in rows.values()]
    finish("memory", {"smallest_ratio": min(ratios), "largest_ratio": max(ratios)}, bounds=BOUNDS)


def measure(cases: Sequence[Case], *, folder: Path) -> dict[str, dict[str, float]]:
    """Measure cases in a new process, because DeepSpeed keeps the first process group of a process,
    and return the figures in MiB by case."""
    values = json.dumps([[case.size, case.fields] for case in cases])
    command = [sys.executable, "-m", "benchmarks.training.memory", values, str(folder)]
    environment = os.environ | RANK_VARIABLES | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    figures: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _run(case: Case, folder: Path) -> dict[str, float]:
    """Train and validate, and return the figures."""
    base_model = saved_model(folder, "chat", case.size)
    lm = load_causal(local_copy(base_model), dtype=None)
    task = training_task(
        base_model,
        "chat",
        num_rows=1,
        num_tokens=LENGTH,
        num_validation=ANSWERED_ROWS * NUM_RANKS,  # as many as are answered at a time at stage 3
        max_new_tokens=MAX_NEW_TOKENS,
    )
    assert isinstance(task, ChatTrainingTask)
    long_answers = build.pairs([("a", "b" * LENGTH)] * 2 * NUM_RANKS, chat=True)
    task = replace(task, train=long_answers)
    runtime = _Runtime(lm, tokenizer(), task, task.dataset(tokenizer()))
    with TrackedMemory(lm) as memory:
        engine = build_engine(case.config, runtime)
        train(engine, case.config, runtime=runtime)
    destroy_engine(engine)
    estimate = _estimate(case.config, shape=shape_of(lm))
    return {
        "peak": memory.peak / MIB,
        "estimate": estimate / MIB,
        "estimate / peak": estimate / memory.peak,
    }


def _estimate(config: TrainingConfig, *, shape: ModelShape) -> int:
    """Return the estimated bytes for the lengths of the training and validation rows."""
    autocast = inference_dtype() == torch.bfloat16
    batch = BatchShape(LENGTH, max_new_tokens=MAX_NEW_TOKENS, packed=True, autocast=autocast)
    known: dict[str, Any] = {"shape": shape, "num_workers": NUM_RANKS}
    memory = worker_memory(config, batch=batch, **known)
    activations = activation_bytes(config, batch=batch, **known)
    validation = validation_bytes(config, shape=shape, batch=replace(batch, max_length=PROMPT))
    parts = memory.host | {"process": 0, "activations": max(activations, validation)}
    return sum(parts.values())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=NUM_RANKS)
        chosen = [Case(*values) for values in json.loads(sys.argv[1])]
        folder = Path(sys.argv[2])
        print(json.dumps({case.name: _run(case, folder) for case in chosen}), flush=True)
        os._exit(0)  # without the destructors of the process group
    main()
