"""Checkpoints: their local files and uploads, and protection against code in them.

A checkpoint that contains code is rejected, and the code does not run, no matter how the checkpoint is read.
"""

import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import serialization

from tailorbird.config.training import TrainingConfig
from tests.unit.training.small import config_of, small_runtime
from training import checkpoint
from training.checkpoint import TAG, Upload, node_directory
from training.classification_task import ClassifierRuntime
from training.engine.deepspeed_private import convert_to_universal, destroy_engine
from training.engine.node_disk import require_room
from training.errors import DiskFull, staging_directory
from training.loop import build_engine, train
from training.reports import Progress
from training.safe_checkpoint_loading import FORBID, FORCE, UnusableCheckpoint, find_unsafe_file, tensors_only

LIMIT_S = 20
SHARDS = [f"step/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(12)]
STATES = [f"rng-{rank}.safetensors" for rank in range(12)]
COMMON = ["latest", "step/mp_rank_00_model_states.pt", *(f"progress-{rank}.json" for rank in range(12))]
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
    engine, _ = checkpoint.resume(config, runtime, uri=folder.as_uri())
    destroy_engine(engine)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("stage", "name"), READ)
def test_a_checkpoint_with_code_is_rejected_and_the_code_does_not_run(
    checkpoints: dict[int, Path], tmp_path: Path, stage: int, name: str, attack: Callable[[Path, Payload], None]
) -> None:
    folder, marker = shutil.copytree(checkpoints[stage], tmp_path / "copy"), tmp_path / "it-ran"
    attack(folder / name, Payload(marker))
    with pytest.raises(
        UnusableCheckpoint, match=rf"checkpoint {folder.as_uri()} was changed .*{name}.* check the write permissions"
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


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_is_converted_by_several_threads_from_mapped_files(
    checkpoints: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    names, load, maps = set(), torch.load, set()

    def recorded(*args: Any, **kwargs: Any) -> Any:
        names.add(threading.current_thread().name)
        maps.add(serialization.config.load.mmap)
        return load(*args, **kwargs)

    contents = []
    for num_threads in (1, 3):
        if num_threads > 1:
            monkeypatch.setattr(torch, "load", recorded)
        folder = tmp_path / str(num_threads)
        with tensors_only():
            convert_to_universal(checkpoints[stage] / TAG, folder, num_threads=num_threads)
        states = (folder / "zero").glob("*/*.pt")
        contents.append({str(file.relative_to(folder)): load(file, weights_only=True) for file in states})
    assert any(name.startswith("ThreadPool") for name in names)
    assert maps == {True}
    assert contents[0]
    torch.testing.assert_close(*contents, rtol=0, atol=0)
    assert not serialization.config.load.mmap


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


def test_a_checkpoint_that_does_not_fit_the_disk_is_refused_before_it_is_written() -> None:
    folder = tempfile.gettempdir()
    require_room(1, what="a checkpoint")
    message = f"the disk is full: {folder} has .* MiB left, but a checkpoint .* needs 1,048,576,000.0 MiB; free some"
    with pytest.raises(DiskFull, match=message):
        require_room(1_000 << 40, what="a checkpoint")


def test_the_steps_of_a_universal_checkpoint_are_copied_to_the_device_of_their_parameters(tmp_path: Path) -> None:
    parameters = [torch.nn.Parameter(torch.empty(4, device="meta")) for _ in range(2)]
    optimizer, loaded = torch.optim.AdamW(parameters), torch.tensor(3.0)

    class Engine:
        """An engine that loads a step as DeepSpeed does: one tensor on the CPU for all parameters."""

        def __init__(self) -> None:
            self.optimizer = optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)

        def load_checkpoint(self, *_: object, **__: object) -> tuple[str, dict[str, Any]]:
            for parameter in parameters:
                optimizer.state[parameter] = {"step": loaded}
            return str(tmp_path), {}

    checkpoint._restore(Engine(), config_of(), folder=tmp_path, uri=tmp_path.as_uri())
    first, second = (optimizer.state[parameter]["step"] for parameter in parameters)
    assert first.device == second.device == torch.device("meta")
    assert first is not second


def test_a_node_downloads_the_shards_of_its_own_ranks() -> None:
    needed = checkpoint.files_to_download([*SHARDS, *STATES, *COMMON], ranks={4, 11}, num_ranks=12, zero_stage=1)
    assert needed == {*COMMON, SHARDS[4], STATES[4], SHARDS[11], STATES[11]}


def test_with_another_number_of_ranks_all_shards_are_converted_and_no_random_state_is_needed() -> None:
    names = [*SHARDS, *STATES, *COMMON]
    needed = checkpoint.files_to_download(names, ranks={0, 1}, num_ranks=8, zero_stage=1)
    assert needed == {*COMMON, *SHARDS}
    assert checkpoint.files_to_download([*STATES, *COMMON], ranks={0}, num_ranks=8, zero_stage=0) == set(COMMON)


def test_a_folder_of_the_node_is_deleted_after_its_use() -> None:
    with node_directory() as (folder, leads):
        assert leads
        assert folder.is_dir()
    assert not folder.exists()


def test_a_staged_folder_remains_unless_its_block_fails() -> None:
    with staging_directory() as folder:
        (folder / "file").touch()
    assert (folder / "file").exists()
    with pytest.raises(ZeroDivisionError), staging_directory() as folder:
        raise ZeroDivisionError
    assert not folder.exists()


def test_an_upload_runs_while_training_continues_and_its_error_is_raised_later() -> None:
    upload, trained = Upload(), threading.Event()

    def fail() -> None:
        assert trained.wait(LIMIT_S)
        raise ValueError("s3 is gone")

    upload.wait()
    upload.start(fail)
    trained.set()  # not reached if `start` waited for the upload
    with pytest.raises(ValueError, match="s3 is gone"):
        upload.wait()
    upload.wait()
