"""Exports of two ranks over gloo with the configuration of GPUs: every stage, method, task and
precision."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from tailorbird.config.training import TrainingConfig
from tests.small_chat import language_model, tokenizer
from tests.unit.training.ranks import on_ranks
from tests.unit.training.small import config_of, small_runtime
from tests.unit.training.test_chat_task import task_of
from training.chat_task import ChatRuntime
from training.dataset import rank_rows, sampled_rows
from training.engine.deepspeed_engine import initialize_engine
from training.engine.deepspeed_private import destroy_engine
from training.export import UnusableWeights, export_weights, exported_values
from training.task import TaskRuntime, Weights

pytestmark = pytest.mark.long

NUM_STEPS, MORE_STEPS, BATCH_SIZE, RATE = 2, 2, 4, 1e-3


@dataclass(frozen=True)
class Case:
    stage: int
    method: str
    task: str  # chat, wide (a chat with a hidden size of 512) or classification
    stored: str  # precision of the base model's files
    parameters: str = "fp32"
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = (self.stage, self.method, self.task, self.stored, self.parameters, *self.options)
        return "-".join(map(str, parts))


def zero(**options: bool) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": options}}


TARGET = Case(3, "lora", "wide", "bf16")
"""An adapter on a large language model, whose frozen linear weights are gathered in bf16, and the
others in fp32."""
CASES = [
    Case(0, "full", "chat", "fp32"),
    Case(1, "lora", "chat", "bf16"),
    Case(2, "full", "chat", "bf16", options=zero(overlap_comm=True)),
    Case(2, "lora", "classification", "fp32"),
    Case(3, "full", "wide", "fp32"),
    TARGET,
    Case(3, "full", "chat", "bf16", options=zero(overlap_comm=False)),
    Case(0, "full", "classification", "bf16", "bf16"),
    Case(
        1,
        "full",
        "classification",
        "bf16",
        "bf16",
        {"deepspeed": {"data_types": {"grad_accum_dtype": "fp32"}}},
    ),
    Case(2, "lora", "chat", "bf16", "bf16"),
    Case(3, "lora", "classification", "fp32", "bf16"),
    Case(3, "lora", "wide", "bf16", "bf16"),
]
WRONG = [
    Case(3, "full", "wide", "fp32"),
    TARGET,
    Case(1, "full", "chat", "fp32", "bf16"),
    Case(2, "lora", "chat", "bf16", "bf16"),
    Case(0, "full", "classification", "fp32"),
]


def runtime_of(case: Case) -> TaskRuntime:
    if case.task == "classification":
        runtime: Any = small_runtime(dropout=0.0, hidden_size=64)
        base: nn.Module = runtime.encoder
    else:
        base = language_model(width=512 if case.task == "wide" else 32)
        runtime = ChatRuntime(base, tokenizer(), task_of(), task_of().dataset(tokenizer()))
    if case.stored == "bf16":
        for parameter in base.parameters():
            parameter.data = parameter.data.bfloat16()
    return runtime  # type: ignore[no-any-return]


def gpu_config(case: Case) -> TrainingConfig:
    return config_of(
        num_workers=2,
        gpus_per_worker=1,
        batch_size=BATCH_SIZE,
        zero_stage=case.stage,
        method=case.method,
        learning_rate=RATE,
        parameter_dtype=case.parameters,
        **case.options,
    )


def train(
    case: Case, *, on_step: Callable[[Any], None] = lambda _: None, autocast: bool = True
) -> tuple[Any, Any, TaskRuntime]:
    """Train a few steps with the configuration of GPUs, and return the engine, the config and the
    runtime."""
    runtime, config = runtime_of(case), gpu_config(case)
    torch.manual_seed(dist.get_rank())
    model = runtime.build(config, autocast=autocast)
    engine = initialize_engine(model, config, num_steps=NUM_STEPS + MORE_STEPS, autocast=autocast)
    for number in range(NUM_STEPS):
        on_step(engine)
        step(engine, config, runtime, number=number)
    return engine, config, runtime


def step(engine: Any, config: TrainingConfig, runtime: TaskRuntime, *, number: int) -> float:
    """Run a step, and return the loss of this rank."""
    window = sampled_rows(runtime.train)
    rows = rank_rows(torch.arange(BATCH_SIZE).numpy() + number, rank=dist.get_rank(), num_ranks=2)
    batch = runtime.collate(config, window, rows).to(engine.device)
    loss = runtime.loss(engine, config, batch) / runtime.weight(window, rows)
    engine.backward(loss)
    engine.step()
    return float(loss.detach())


def export(case: Case, folder: Path) -> str:
    """Train and export; return the reason on rank 0 if the export is refused."""
    engine, config, runtime = train(case)
    try:
        export_weights(engine, config, runtime=runtime, folder=folder)
    except UnusableWeights as error:
        return str(error)
    finally:
        destroy_engine(engine)
    return ""


@contextmanager
def wrong_files(
    kind: str, *, before: dict[str, torch.Tensor], runtime: TaskRuntime
) -> Iterator[None]:
    """Write one matrix with other values than the trained ones: transposed, or of the step
    before."""
    write = type(runtime).write

    names = [
        name
        for name, value in before.items()
        if value.ndim == 2 and value.shape[0] == value.shape[1]
    ]
    wrong = next((name for name in (*names, *before) if name in names or "lora_B" in name), "")

    def write_wrong(self: Any, weights: Weights, **options: Any) -> None:
        def values() -> Weights:
            for name, value in weights:
                changed = value.T if kind == "transposed" else before[name]
                yield name, changed if name == wrong else value

        write(self, values(), **options)

    with mock.patch.object(type(runtime), "write", write_wrong):
        yield


@contextmanager
def wrong_masters(before: dict[str, torch.Tensor]) -> Iterator[None]:
    """Export the weights of the step before."""

    def stale(engine: Any, config: TrainingConfig) -> Weights:
        for name, value in exported_values(engine, config):
            yield name, before.get(name, value)

    with mock.patch("training.export.exported_values", stale):
        yield


def export_wrong(case: Case, folder: Path) -> dict[str, str]:
    """Return the reasons of refusals on rank 0 by the kind of wrong weights."""
    before: dict[str, torch.Tensor] = {}

    def on_step(engine: Any) -> None:
        values = exported_values(engine, config_of(method=case.method))
        before.update({name: value for name, value in values if dist.get_rank() == 0})

    engine, config, runtime = train(case, on_step=on_step)
    reasons = {}
    wrongs = {
        "step before": wrong_files("step before", before=before, runtime=runtime),
        "masters": wrong_masters(before),
    }
    if case.method == "full":  # the matrices of an adapter are not square
        wrongs["transposed"] = wrong_files("transposed", before=before, runtime=runtime)
    for kind, wrong in wrongs.items():
        reasons[kind] = ""
        with wrong:
            try:
                export_weights(engine, config, runtime=runtime, folder=folder / kind)
            except UnusableWeights as error:
                reasons[kind] = str(error)
        dist.barrier()
    destroy_engine(engine)
    return reasons


def export_all(folder: Path) -> None:
    reasons: dict[str, Any] = {str(case): export(case, folder / str(case)) for case in CASES}
    reasons["wrong"] = {
        str(case): export_wrong(case, folder / "wrong" / str(case)) for case in WRONG
    }
    if dist.get_rank() == 0:
        (folder / "reasons.json").write_text(json.dumps(reasons))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train all cases in the same two processes; return the folder of exports, and the reasons of
    refusals."""
    folder = tmp_path_factory.mktemp("exported")
    on_ranks(2, export_all, folder)
    return folder, json.loads((folder / "reasons.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_trained_model_is_exported_exactly_in_every_precision(
    exported: tuple[Path, dict[str, Any]], case: Case
) -> None:
    folder, reasons = exported
    assert reasons[str(case)] == ""
    files = list((folder / str(case)).rglob("*.safetensors"))
    weights = {name: value for file in files for name, value in load_file(file).items()}
    # The gradient of a matrix A is 0 in the first step, and in the second if the head was 0 too.
    trained = {
        name: value for name, value in weights.items() if value.ndim > 1 and "lora_A" not in name
    }
    assert trained
    for name, value in trained.items():
        assert value.dtype == torch.float32
        # Weights that were rounded to bf16 on the way would be equal to their rounded values.
        assert (value != value.bfloat16().float()).float().mean() > 0.5, name


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_one_wrong_matrix_is_refused_in_every_precision(
    exported: tuple[Path, dict[str, Any]], case: Case
) -> None:
    reasons = exported[1]["wrong"][str(case)]
    assert all("differ from the trained model" in reason for reason in reasons.values()), reasons
