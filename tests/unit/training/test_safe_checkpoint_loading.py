"""A checkpoint that contains code is rejected, and the code does not run, no matter how the checkpoint is read."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorbird.config.training import TrainingConfig
from tests.unit.training.small import config_of, small_runtime
from training import checkpoint
from training.classification_task import ClassifierRuntime
from training.deepspeed_private import destroy_engine
from training.loop import build_engine, train
from training.reports import Progress
from training.safe_checkpoint_loading import FORBID, FORCE, UnusableCheckpoint, find_unsafe_file, tensors_only

URI = "s3://models/task/runs/1/train/checkpoint"
MODEL = {stage: f"step/{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt" for stage in (0, 1, 3)}
OPTIMIZER = "step/zero_pp_rank_0_mp_rank_00_optim_states.pt"
READ = [(0, MODEL[0]), (1, MODEL[1]), (1, OPTIMIZER), (3, MODEL[3]), (3, OPTIMIZER)]
"""Pairs of a ZeRO stage and a file that a resume reads."""


class Payload:
    """An object whose unpickling creates the folder `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def inside_the_state(file: Path, payload: Payload) -> None:
    torch.save(torch.load(file, weights_only=False) | {"more": payload}, file)


def in_legacy_format(file: Path, payload: Payload) -> None:
    torch.save({"more": payload}, file, _use_new_zipfile_serialization=False)


def as_plain_pickle(file: Path, payload: Payload) -> None:
    file.write_bytes(pickle.dumps(payload))


ATTACKS: list[Callable[[Path, Payload], None]] = [inside_the_state, in_legacy_format, as_plain_pickle]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints by ZeRO stage."""
    folders = {}
    for stage in MODEL:
        folders[stage] = tmp_path_factory.mktemp(f"stage-{stage}")
        runtime, config = runtime_and_config(stage)
        engine = build_engine(config, runtime)
        train(engine, config, runtime=runtime)
        checkpoint.save(engine, config, folder=folders[stage], progress=Progress(epoch=1))
        destroy_engine(engine)
    return folders


def runtime_and_config(stage: int) -> tuple[ClassifierRuntime, TrainingConfig]:
    return small_runtime(dropout=0.0), config_of(zero_stage=stage, epochs=1)


def resume(folder: Path, *, stage: int) -> None:
    runtime, config = runtime_and_config(stage)
    engine, _ = checkpoint.resume(config, runtime, folder=folder, uri=URI)
    destroy_engine(engine)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("stage", "name"), READ)
def test_a_checkpoint_with_code_is_rejected_and_the_code_does_not_run(
    checkpoints: dict[int, Path], tmp_path: Path, stage: int, name: str, attack: Callable[[Path, Payload], None]
) -> None:
    folder, marker = shutil.copytree(checkpoints[stage], tmp_path / "copy"), tmp_path / "it-ran"
    attack(folder / name, Payload(marker))
    with pytest.raises(
        UnusableCheckpoint, match=rf"checkpoint {URI} was changed .*{name}.* check the write permissions"
    ):
        resume(folder, stage=stage)
    assert not marker.exists()


@pytest.mark.parametrize(("stage", "name"), READ)
def test_deepspeed_loads_a_checkpoint_without_running_its_code(
    checkpoints: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, name: str
) -> None:
    # Simulate a file that was changed after the check.
    monkeypatch.setattr(checkpoint, "find_unsafe_file", lambda _: None)
    folder, marker = shutil.copytree(checkpoints[stage], tmp_path / "copy"), tmp_path / "it-ran"
    inside_the_state(folder / name, Payload(marker))
    with pytest.raises(pickle.UnpicklingError):
        resume(folder, stage=stage)
    assert not marker.exists()


@pytest.mark.parametrize("name", [MODEL[1], OPTIMIZER])
def test_the_conversion_of_shards_does_not_run_code(
    checkpoints: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(checkpoint, "find_unsafe_file", lambda _: None)
    folder, marker = shutil.copytree(checkpoints[1], tmp_path / "copy"), tmp_path / "it-ran"
    shutil.copy(folder / "progress-0.json", folder / "progress-1.json")
    inside_the_state(folder / name, Payload(marker))
    with pytest.raises(pickle.UnpicklingError):
        resume(folder, stage=1)
    assert not marker.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_payload_runs_without_protection(
    checkpoints: dict[int, Path], tmp_path: Path, attack: Callable[[Path, Payload], None]
) -> None:
    file, marker = tmp_path / "state.pt", tmp_path / "it-ran"
    shutil.copy(checkpoints[1] / OPTIMIZER, file)
    attack(file, Payload(marker))
    torch.load(file, weights_only=False) if attack is not as_plain_pickle else pickle.loads(file.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("stage", list(MODEL))
def test_the_checkpoint_of_a_training_is_accepted(checkpoints: dict[int, Path], stage: int) -> None:
    assert find_unsafe_file(checkpoints[stage]) is None


def test_a_truncated_file_is_rejected(checkpoints: dict[int, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints[1], tmp_path / "copy")
    content = (folder / OPTIMIZER).read_bytes()
    (folder / OPTIMIZER).write_bytes(content[: len(content) // 2])
    with pytest.raises(UnusableCheckpoint, match=f"{OPTIMIZER} is not a torch file"):
        resume(folder, stage=1)


def test_environment_variables_do_not_disable_the_protection_and_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORBID, "1")
    monkeypatch.delenv(FORCE, raising=False)
    file, marker = tmp_path / "state.pt", tmp_path / "it-ran"
    in_legacy_format(file, Payload(marker))
    with tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert not marker.exists()
    assert os.environ.get(FORBID) == "1"
    assert FORCE not in os.environ
