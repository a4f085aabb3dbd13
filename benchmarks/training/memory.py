"""Memory of a training worker, compared with `training.engine.memory_estimate` and with its part of
the model.

    python -m benchmarks.training.memory

Each case is a process that builds an engine for a language model with random weights, trains two
steps and validates. The tensors of rank 0 are counted exactly, on CPU. Most cases run only rank 0,
in torch's fake process group, whose collectives do nothing, so the numbers of ranks can be large.
In the cases with gloo, all ranks run, and the weights are exported. Base weights are stored in bf16
and mapped from a file, which takes no memory of the process and is not counted; neither are
exported weights that are mapped to be checked.

The largest cases need 7 GiB of memory. A rank that trains all parameters of the 300M model needs
4.3 GiB at stage 3 and 5.5 GiB at stage 0, without the process, so two of them would need up to 12
GiB; only rank 0 runs.

- held: what remains between two steps; `held / part` compares it with the model's share of a rank.
- peak: of the start of the engine, of a step, of the validation, or of the export.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import finish, print_table
from tailorbird.config.training import TrainingConfig
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.metadata import shape_of
from tailorbird.models.pretrained import inference_dtype, load_causal
from tailorbird.models.shape import ModelShape
from tailorbird.registry.versions import Prompting
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
from training.export import export_weights
from training.loop import build_engine, train
from training.task import Diverged

SIZES = {  # width, width of the feed-forward layers, layers, vocabulary
    "1M": (128, 384, 4, 2000),  # for tests
    "30M": (384, 1024, 8, 20_000),
    "100M": (768, 2048, 10, 20_000),
    "300M": (1024, 3072, 20, 20_000),
}
LENGTH = 256
MICRO_BATCH = 1
PROMPT = 16
TEMPLATE = 3
MAX_NEW_TOKENS = 4
"""Tokens of a validation row: its prompt, those of the template in the prompt, and its answer. With
longer prompts, a validation at stage 3 needs more than a step; the unit tests of
`synced_generation` measure it without an engine."""
BUCKETS = {"full": 1_000_000, "lora": 100_000}
"""Parameters in a buffer for gradients, by method: fewer than are trained. DeepSpeed's default is
larger than these models. The unused part of a buffer takes no memory on CPU, but would be counted.
"""
MIB = 1 << 20
Group = Literal["fake", "gloo"]
BOUNDS = {"smallest_ratio": ">= 1", "largest_ratio": "<= 2"}
OFFLOADS = [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
"""Stages and what is offloaded. Without a GPU, host and device are one memory, and nothing is
page-locked."""


@dataclass(frozen=True)
class Case:
    """A training whose memory is measured."""

    size: str
    ranks: int
    fields: dict[str, Any] = field(default_factory=dict)
    group: Group = "fake"

    @property
    def name(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.fields.items())
        return f"{self.size}, {self.ranks} ranks ({self.group}), {options}"

    @property
    def config(self) -> TrainingConfig:
        values = {"num_workers": self.ranks, "batch_size": self.ranks * MICRO_BATCH, "epochs": 1}
        bucket = BUCKETS[self.fields.get("method", "full")]
        options = {"deepspeed": {"zero_optimization": {"reduce_bucket_size": bucket}}}
        return TrainingConfig.model_validate(values | options | self.fields)


def cases() -> list[Case]:
    """Return all cases: every combination of small models, and the settings of large ones."""
    chosen = []
    for size, dtype, recomputes, method, stage in product(
        ("1M", "30M"), ("fp32", "bf16"), (False, True), ("full", "lora"), range(4)
    ):
        fields = {"zero_stage": stage, "method": method, "gradient_checkpointing": recomputes}
        chosen.append(Case(size, 2, fields | {"parameter_dtype": dtype}))
    for method, dtype, (stage, offload) in product(("full", "lora"), ("fp32", "bf16"), OFFLOADS):
        fields = {"zero_stage": stage, "method": method, "parameter_dtype": dtype}
        chosen.append(Case("30M", 2, fields | {"offload": offload}))
    for stage, method in product((0, 3), ("full", "lora")):
        chosen.append(Case("300M", 2, {"zero_stage": stage, "method": method}))
    for stage in (0, 3):
        chosen.append(Case("300M", 2, {"zero_stage": stage, "method": "lora"}, "gloo"))
        chosen.append(Case("30M", 2, {"zero_stage": stage}, "gloo"))
    return [
        *chosen,
        Case("100M", 32, {"zero_stage": 2, "gradient_checkpointing": True}),
        Case("100M", 32, {"zero_stage": 3, "gradient_checkpointing": True}),
        Case("100M", 32, {"zero_stage": 3, "method": "lora"}),
    ]


@dataclass(frozen=True)
class _MeasuredRuntime(ChatRuntime):
    """A runtime that notes the memory before and after the validation, and does not count files
    that are mapped."""

    memory: TrackedMemory = field(default_factory=TrackedMemory)
    figures: dict[str, int] = field(default_factory=dict)

    def loss(self, engine: Any, config: TrainingConfig, batch: Batch) -> torch.Tensor:
        return torch.nan_to_num(super().loss(engine, config, batch))

    def score(self, engine: Any, config: TrainingConfig) -> float:
        self.figures.update(step=self.memory.reset_peak(), held=self.memory.bytes)
        with suppress(Diverged):  # gathered weights are not those of the model
            super().score(engine, config)
        self.figures["validation"] = self.memory.reset_peak()
        return 0.0

    def load(self, folder: Path, *, config: TrainingConfig) -> ChatModel:
        peak = self.memory.peak
        loaded = super().load(folder, config=config)
        if config.method == "full":
            self.memory.share(loaded)
            self.memory.peak = peak
        return loaded


def main() -> None:
    """Print the cases, then one line of JSON."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        for ranks, group in ((2, "fake"), (2, "gloo"), (32, "fake")):
            alike = [case for case in cases() if (case.ranks, case.group) == (ranks, group)]
            rows |= measure(alike, folder=Path(folder))
    print_table(f"MiB of rank 0, {MICRO_BATCH} x {LENGTH} tokens, {inference_dtype()}", rows)
    ratios = [figures["estimate / peak"] for figures in rows.values()]
    finish("memory", {"smallest_ratio": min(ratios), "largest_ratio": max(ratios)}, bounds=BOUNDS)


def measure(cases: Sequence[Case], *, folder: Path) -> dict[str, dict[str, float]]:
    """Measure cases of one number of ranks and one group in new processes, and return the figures
    in MiB by case.

    DeepSpeed keeps the first process group of a process.
    """
    values = json.dumps([[case.size, case.ranks, case.fields, case.group] for case in cases])
    command = [sys.executable, "-m", "benchmarks.training.memory", values, str(folder)]
    processes = []
    for rank in range(cases[0].ranks if cases[0].group == "gloo" else 1):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        output = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(
            subprocess.Popen(
                command, stdout=output, stderr=output, text=True, env=os.environ | environment
            )
        )
    try:
        printed, errors = processes[0].communicate()
        if processes[0].returncode != 0:
            raise RuntimeError(errors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    figures: dict[str, dict[str, float]] = json.loads(printed.splitlines()[-1])
    return figures


def run_cases(cases: Sequence[Case], folder: Path) -> dict[str, dict[str, float]]:
    """Measure cases in this process."""
    torch.set_num_threads(1)
    group = cases[0].group
    rank = int(os.environ["RANK"])
    ranks = cases[0].ranks
    if group == "gloo":
        method = (folder / "store").as_uri()
        dist.init_process_group(group, init_method=method, rank=rank, world_size=ranks)
    else:
        dist.init_process_group(group, store=FakeStore(), rank=rank, world_size=ranks)
    return {case.name: _run(case, folder) for case in cases}


def _run(case: Case, folder: Path) -> dict[str, float]:
    """Train and validate, and return the figures."""
    if dist.get_rank() == 0:
        saved_model(case.size, folder)
    dist.barrier()
    lm = load_causal(saved_model(case.size, folder), dtype=None)
    memory = TrackedMemory(lm)
    runtime = random_runtime(lm, memory, num_rows=2 * case.ranks * MICRO_BATCH)
    with memory:
        engine = build_engine(case.config, runtime)
        runtime.figures["start"] = memory.reset_peak()
        train(engine, case.config, runtime=runtime)
        if case.group == "gloo":
            memory.reset_peak()
            export_weights(engine, case.config, runtime=runtime, folder=folder / case.name)
            runtime.figures["export"] = memory.reset_peak()
    destroy_engine(engine)
    return _compared(case, runtime.figures, shape=shape_of(lm))


def _compared(case: Case, measured: dict[str, int], *, shape: ModelShape) -> dict[str, float]:
    """Return the measured memory, and the estimate with the lengths of the training and validation
    rows."""
    autocast = inference_dtype() == torch.bfloat16
    batch = BatchShape(LENGTH, max_new_tokens=MAX_NEW_TOKENS, packed=True, autocast=autocast)
    known: dict[str, Any] = {"shape": shape, "num_workers": case.ranks}
    memory = worker_memory(case.config, batch=batch, **known)
    activations = activation_bytes(case.config, batch=batch, **known)
    validation = validation_bytes(case.config, shape=shape, batch=replace(batch, max_length=PROMPT))
    parts = memory.host | {"process": 0, "activations": max(activations, validation)}
    peak = max(size for name, size in measured.items() if name != "held")
    estimate = sum(parts.values())
    return {f"measured {name}": size / MIB for name, size in measured.items()} | {
        "estimate": estimate / MIB,
        "model / ranks": 4 * shape.num_parameters / case.ranks / MIB,
        "estimate / peak": estimate / peak,
    }


def saved_model(size: str, folder: Path) -> Path:
    """Save a model with random weights in bf16, unless it is there, and return its folder."""
    saved = folder / size
    if not saved.exists():
        width, feed_forward, layers, vocabulary = SIZES[size]
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            vocab_size=vocabulary,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            pad_token_id=0,
            eos_token_id=1,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(saved)
    return saved


def random_runtime(
    lm: torch.nn.Module, memory: TrackedMemory, *, num_rows: int
) -> _MeasuredRuntime:
    """Return a runtime with training rows of `LENGTH` tokens, almost all of them in the answer.

    Each rank has as many validation rows, with prompts of `PROMPT` tokens, as it answers at a time
    at stage 3.
    """
    answer = "b" * LENGTH
    prompts = ["a" * (PROMPT - TEMPLATE)] * ANSWERED_ROWS * dist.get_world_size()
    task = ChatTrainingTask(
        base_model="",
        train=build.pairs([("a", answer)] * num_rows, chat=True),
        validation=build.rows(prompts, [answer] * len(prompts), chat=True),
        max_length=LENGTH,
        metric="exact_match",
        prompting=Prompting(system=None, max_new_tokens=MAX_NEW_TOKENS),
    )
    return _MeasuredRuntime(lm, tokenizer(), task, task.dataset(tokenizer()), memory=memory)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        chosen = [Case(*values) for values in json.loads(sys.argv[1])]
        print(json.dumps(run_cases(chosen, Path(sys.argv[2]))), flush=True)
        os._exit(0)  # without the destructors of the process group
    main()
