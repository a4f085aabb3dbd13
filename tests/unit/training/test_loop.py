"""The loop in one process on a tiny encoder without dropout: however a step is computed, it learns the same."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorbird.config.training import TrainingConfig
from tests.unit.training.small import NUM_ROWS, reports_of, section_of, small_material
from training import checkpoint, export, preemption
from training.classification_task import ClassifierRuntime
from training.deepspeed_engine import destroy_engine
from training.export import UnusableWeights, export_weights, full_state
from training.loop import EpochReport, Progress, build_engine, train
from training.preemption import Interrupted
from training.task import Diverged


@pytest.fixture
def material() -> ClassifierRuntime:
    return small_material(dropout=0.0)


@contextmanager
def trained(material: ClassifierRuntime, **fields: Any) -> Iterator[tuple[Any, TrainingConfig]]:
    """An engine after its epochs; it ends with the block."""
    config = section_of(**fields)
    engine = build_engine(config, material)
    train(engine, config, material=material, on_step=lambda _: None, on_epoch=lambda *_: True)
    yield engine, config
    destroy_engine(engine)


def losses(material: ClassifierRuntime, **fields: Any) -> list[float]:
    """Mean training loss of each of three epochs."""
    return [report.loss for report in reports_of(material, **fields)]


@pytest.mark.parametrize(
    "fields",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 8},
        {"gradient_checkpointing": True},
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "parameters"},
    ],
    ids=str,
)
def test_less_memory_a_step_teaches_the_same(material: ClassifierRuntime, fields: dict[str, Any]) -> None:
    plain = losses(material)
    assert plain[2] < plain[0]
    assert losses(material, **fields) == pytest.approx(plain, rel=0.01)  # bf16 where the machine has it


def test_deepspeeds_own_options_reach_it(material: ClassifierRuntime) -> None:
    config = TrainingConfig(num_workers=1, zero_stage=1, deepspeed={"zero_optimization": {"reduce_bucket_size": 999}})
    engine = build_engine(config, material)
    assert engine.zero_reduce_bucket_size() == 999
    destroy_engine(engine)


def test_an_adapter_learns_through_checkpointed_layers(material: ClassifierRuntime) -> None:
    lora = {"method": "lora", "lora_dropout": 0.0, "learning_rate": 1e-3}
    plain = losses(material, **lora)
    assert plain[2] < plain[0]
    assert losses(material, **lora, gradient_checkpointing=True) == pytest.approx(plain, rel=0.01)


def test_a_loss_that_is_no_number_stops_training_and_names_step_and_rows(material: ClassifierRuntime) -> None:
    config = section_of(epochs=2)
    engine = build_engine(config, material)
    with torch.no_grad():
        engine.module.head.bias[1] = float("nan")
    with pytest.raises(
        Diverged, match=r"the loss is nan in epoch 1, step 1, on training rows (\d+, ){4}\d+ and \d+ more; low"
    ):
        train(engine, config, material=material, on_step=lambda _: None, on_epoch=lambda *_: True)
    destroy_engine(engine)


def test_weights_that_the_last_step_broke_are_found_before_they_are_kept(
    material: ClassifierRuntime,
) -> None:
    config = section_of(epochs=1, learning_rate=1e37, warmup_fraction=0.0, batch_size=NUM_ROWS)
    engine = build_engine(config, material)
    kept: list[EpochReport] = []

    def on_epoch(report: EpochReport, _: Any) -> bool:
        kept.append(report)
        return True

    with pytest.raises(Diverged, match="diverged in epoch 1: answers are no numbers"):
        train(engine, config, material=material, on_step=lambda _: None, on_epoch=on_epoch)
    assert kept == []
    destroy_engine(engine)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_going_on_from_any_step_is_as_if_nothing_had_happened(tmp_path: Path, stage: int, method: str) -> None:
    material = small_material(dropout=0.2)
    config = section_of(zero_stage=stage, method=method, epochs=2, checkpoint_interval_s=0)
    steps: list[tuple[int, int]] = []

    def save(progress: Progress, engine: Any) -> None:
        steps.append((progress.epoch, progress.step))
        folder = tmp_path / f"{progress.epoch}-{progress.step}"
        folder.mkdir()
        checkpoint.save(engine, config, folder=folder, progress=progress)

    def whole(**resumed: Any) -> EpochReport:
        return train(engine, config, material=material, on_step=lambda _: None, on_epoch=lambda *_: True, **resumed)

    engine = build_engine(config, material)
    undisturbed = whole(on_save=save)
    destroy_engine(engine)
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for epoch, step in ((0, 2), (1, 1)):
        kept = tmp_path / f"{epoch}-{step}"
        engine, progress = checkpoint.resume(config, material, folder=kept, uri=kept.as_uri())
        assert (progress.epoch, progress.step, progress.last is None) == (epoch, step, epoch == 0)
        again = whole(progress=progress)
        destroy_engine(engine)
        assert (again.loss, again.score, again.padding_share) == (
            undisturbed.loss,
            undisturbed.score,
            undisturbed.padding_share,
        )


@pytest.mark.parametrize(("stage", "method"), [(1, "full"), (3, "full"), (1, "lora")])
def test_a_checkpoint_is_gone_on_from_with_checkpointed_layers(tmp_path: Path, stage: int, method: str) -> None:
    fields = {"zero_stage": stage, "method": method, "epochs": 1, "learning_rate": 1e-3, "checkpoint_interval_s": 0.0}
    material, config = small_material(dropout=0.2), section_of(**fields)
    listeners: dict[str, Any] = {"on_step": lambda _: None, "on_epoch": lambda *_: True}

    def save(progress: Progress, engine: Any) -> None:
        if progress.step == 1:
            checkpoint.save(engine, config, folder=tmp_path, progress=progress)

    engine = build_engine(config, material)
    plain = train(engine, config, material=material, on_save=save, **listeners)
    destroy_engine(engine)
    config = section_of(**fields, gradient_checkpointing=True)
    engine, progress = checkpoint.resume(config, material, folder=tmp_path, uri=tmp_path.as_uri())
    assert progress.step == 1
    again = train(engine, config, material=material, progress=progress, **listeners)
    destroy_engine(engine)
    assert again.loss == pytest.approx(plain.loss, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 3])
def test_told_to_go_at_an_epoch_s_last_step_it_goes_on_with_the_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    material, config = small_material(dropout=0.2), section_of(zero_stage=stage, epochs=1)
    undisturbed = reports_of(material, zero_stage=stage, epochs=1)[-1]
    listeners: dict[str, Any] = {"on_step": lambda _: None, "on_epoch": lambda *_: True}
    places: list[int] = []

    def save(progress: Progress, engine: Any) -> None:
        places.append(progress.step)
        checkpoint.save(engine, config, folder=tmp_path, progress=progress)
        raise Interrupted

    monkeypatch.setattr(preemption, "preemption_reason", iter((None, None, "the worker got SIGTERM")).__next__)
    engine = build_engine(config, material)
    with pytest.raises(Interrupted):
        train(engine, config, material=material, on_save=save, **listeners)
    destroy_engine(engine)
    assert places == [3]
    engine, progress = checkpoint.resume(config, material, folder=tmp_path, uri=tmp_path.as_uri())
    again = train(engine, config, material=material, progress=progress, on_save=save, **listeners)
    destroy_engine(engine)
    assert (again.loss, again.score, again.padding_share) == (
        undisturbed.loss,
        undisturbed.score,
        undisturbed.padding_share,
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_exported_answers_as_the_trained_model(
    material: ClassifierRuntime, tmp_path: Path, stage: int, method: str
) -> None:
    with trained(material, zero_stage=stage, method=method) as (engine, config):
        export_weights(engine, config, material=material, folder=tmp_path)
    assert (tmp_path / "head.safetensors").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_deepspeed_7900_weights_that_lost_what_was_learned_are_refused(
    material: ClassifierRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def lost(engine: Any, config: TrainingConfig) -> dict[str, torch.Tensor]:
        state = full_state(engine, config)
        return state | {
            name: value * 0.9 for name, value in state.items() if name.endswith("value.weight") or "_B" in name
        }

    monkeypatch.setattr(export, "full_state", lost)
    with trained(material, zero_stage=3, method=method) as (engine, config), pytest.raises(UnusableWeights) as raised:
        export_weights(engine, config, material=material, folder=tmp_path)
    assert "answer otherwise than the trained model" in str(raised.value)


def test_a_report_counts_the_seconds_of_its_epoch_and_of_all() -> None:
    reports = reports_of(small_material(dropout=0.0), epochs=3)
    assert [report.total_seconds for report in reports] == pytest.approx(
        list(itertools.accumulate(report.step_seconds for report in reports))
    )
