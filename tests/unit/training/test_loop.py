"""The training loop in one process with a tiny encoder: memory options, divergence and exported
weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailorbird.config.training import TrainingConfig
from tailorbird.registry.pooling import Pooling
from tests.unit.training.small import (
    NUM_ROWS,
    config_of,
    exact,
    reports_of,
    resumed,
    small_runtime,
    trained,
)
from training import checkpoint, export, loop, preemption
from training.batch import Batch
from training.classification_task import ClassifierRuntime
from training.dataset import steps
from training.engine.deepspeed_private import destroy_engine
from training.errors import OutOfMemory
from training.export import UnusableWeights, export_weights, exported_values
from training.loop import build_engine
from training.reports import Progress
from training.task import Diverged, Weights


@pytest.fixture
def runtime() -> ClassifierRuntime:
    return small_runtime(dropout=0.0)


def losses(runtime: ClassifierRuntime, **fields: Any) -> list[float]:
    """Return the mean training loss of each epoch."""
    return [report.loss for report in reports_of(runtime, **fields)]


@pytest.fixture(scope="module")
def plain_losses() -> list[float]:
    """The mean training loss of each epoch without options."""
    return losses(small_runtime(dropout=0.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_tokens": 80},
        {"batch_tokens": 24},
        {"gradient_checkpointing": True},
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "parameters"},
    ],
    ids=str,
)
def test_options_that_save_memory_do_not_change_the_losses(
    runtime: ClassifierRuntime, plain_losses: list[float], fields: dict[str, Any]
) -> None:
    assert plain_losses[2] < plain_losses[0]
    # bf16, if the machine supports it, rounds differently.
    assert losses(runtime, **fields) == pytest.approx(plain_losses, rel=0.01)


def test_a_nan_loss_raises_diverged_with_step_and_rows(runtime: ClassifierRuntime) -> None:
    torch.nn.init.constant_(next(runtime.encoder.parameters()), float("nan"))
    message = (
        r"the loss is nan in epoch 1, step 1, on training rows (\d+, ){4}\d+ and \d+ more; low"
    )
    with pytest.raises(Diverged, match=message):
        reports_of(runtime)


@pytest.mark.parametrize("limit", [None, 1, 1000])
def test_a_micro_batch_that_exceeds_the_memory_is_halved_unless_it_is_a_row(
    runtime: ClassifierRuntime, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    sizes: list[int] = []

    def refuse(_: object, __: object, ___: object, batch: Batch) -> None:
        sizes.append(batch.num_tokens)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ClassifierRuntime, "loss", refuse)
    expected = torch.OutOfMemoryError if limit == 1 else OutOfMemory
    with pytest.raises(expected) as raised:
        reports_of(runtime, batch_tokens=limit)
    (size,) = sizes
    assert getattr(raised.value, "batch_tokens", size // 2) == size // 2


def test_a_step_that_diverges_between_two_reads_is_named_and_not_checkpointed(
    runtime: ClassifierRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"epochs": 1, "batch_size": 2, "checkpoint_interval_s": 3600}
    monkeypatch.setattr(
        loop, "REPORT_INTERVAL_S", 3600.0
    )  # losses are read after steps 1, 3, 7 and 12
    order = [
        window.row_ids[row]
        for window, batch in steps(runtime.train, config_of(**fields), epoch=0, start=0)
        for row in batch
    ]
    computed, loss, saved = 0, ClassifierRuntime.loss, []

    def breaks_at_step_5(self: ClassifierRuntime, engine: Any, *arguments: Any) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return loss(self, engine, *arguments) * (float("inf") if computed == 5 else 1.0)

    monkeypatch.setattr(ClassifierRuntime, "loss", breaks_at_step_5)
    monkeypatch.setattr(
        preemption, "preemption_reason", lambda: "the worker received SIGTERM"
    )  # saves at each read

    def save(progress: Progress, _: Any) -> None:
        saved.append((progress.step, progress.losses))

    message = f"the loss is inf in epoch 1, step 5, on training rows {order[8]}, {order[9]};"
    with pytest.raises(Diverged, match=message):
        reports_of(runtime, on_save=save, **fields)
    assert computed == 7
    assert [step for step, _ in saved] == [1, 3]
    assert np.isfinite([losses for _, losses in saved]).all()


def test_weights_that_the_last_step_broke_are_not_reported(runtime: ClassifierRuntime) -> None:
    with pytest.raises(Diverged, match="diverged in epoch 1: predictions are not finite"):
        reports_of(runtime, epochs=1, learning_rate=1e37, batch_size=NUM_ROWS)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_exported_model_predicts_as_the_trained_model(
    runtime: ClassifierRuntime, tmp_path: Path, stage: int, method: str
) -> None:
    with trained(runtime, zero_stage=stage, method=method) as (engine, config):
        export_weights(engine, config, runtime=runtime, folder=tmp_path)
    assert (tmp_path / "head.safetensors").exists()


def test_a_training_uses_the_pooling_of_its_configuration(
    runtime: ClassifierRuntime, tmp_path: Path
) -> None:
    task = replace(runtime.task, pooling=Pooling(mode="lasttoken", normalize=True))
    runtime = replace(runtime, task=task)
    assert runtime.build(config_of(pooling="mean")).pooling == Pooling()
    with trained(runtime, zero_stage=3) as (engine, config):
        assert engine.module.pooling == Pooling(mode="lasttoken")
        export_weights(engine, config, runtime=runtime, folder=tmp_path)  # compares the logits


@pytest.mark.parametrize("method", ["full", "lora"])
def test_deepspeed_7900_weights_that_differ_from_the_trained_model_are_rejected(
    runtime: ClassifierRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def lost(engine: Any, config: TrainingConfig) -> Weights:
        for name, value in exported_values(engine, config):
            yield name, value * 0.9 if name.endswith("value.weight") or "_B" in name else value

    monkeypatch.setattr(export, "exported_values", lost)
    with (
        trained(runtime, zero_stage=3, method=method) as (engine, config),
        pytest.raises(UnusableWeights) as raised,
    ):
        export_weights(engine, config, runtime=runtime, folder=tmp_path)
    assert "the exported weights differ from the trained model in" in str(raised.value)


@pytest.mark.parametrize(("stage", "method"), [(0, "full"), (2, "lora"), (3, "full")])
def test_a_resume_from_any_step_gives_the_report_of_an_uninterrupted_training(
    tmp_path: Path, stage: int, method: str
) -> None:
    runtime = small_runtime(dropout=0.2)
    fields = {"zero_stage": stage, "method": method, "epochs": 2, "checkpoint_interval_s": 0}
    saved: list[tuple[int, int]] = []

    def save(progress: Progress, engine: Any) -> None:
        saved.append((progress.epoch, progress.step))
        folder = tmp_path / str(len(saved))
        folder.mkdir()
        checkpoint.save(engine, folder=folder, progress=progress)

    uninterrupted = reports_of(runtime, on_save=save, **fields)[-1]
    assert saved == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for number in (2, 3):
        progress, report = resumed(runtime, tmp_path / str(number), **fields)
        assert (progress.epoch, progress.step) == saved[number - 1]
        assert (progress.last is None) == (progress.epoch == 0)
        assert exact(report) == exact(uninterrupted)


def test_a_training_warms_up_in_a_tenth_of_its_steps_and_a_head_learns_faster() -> None:
    config = config_of(method="lora", epochs=10, learning_rate=1e-3)
    engine = build_engine(config, small_runtime(dropout=0.0))
    schedule = engine.lr_scheduler
    assert set(schedule.base_lrs) == {5e-3, 1e-2}
    shares = [schedule.lr_lambdas[0](step) for step in range(100)]
    destroy_engine(engine)
    num_steps = shares.index(0, 1) - 1  # share 0 comes before the first step and after the last
    assert shares.index(1) - 1 == num_steps // 10
