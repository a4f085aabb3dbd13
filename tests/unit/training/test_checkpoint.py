"""Checkpoints: their local files and uploads, and protection against code in them.

A checkpoint that contains code is rejected, and the code does not run, no matter how the checkpoint
is read.
"""

import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tailorbird.config.training import TrainingConfig
from tailorbird.storage import StorageError
from tests.unit.training.small import config_of, small_runtime
from training import checkpoint, safe_checkpoint_loading
from training.checkpoint import Upload, node_directory
from training.classification_task import ClassifierRuntime
from training.engine.deepspeed_private import VERSION, destroy_engine
from training.errors import staging_directory
from training.loop import build_engine, train
from training.reports import Progress
from training.safe_checkpoint_loading import (
    FORBID,
    FORCE,
    UnusableCheckpoint,
    find_unsafe_file,
    position_in_file,
    read_header,
    tensors_only,
)

LIMIT_S = 20
SHARDS = [f"step/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(12)]
STATES = [f"rng-{rank}.safetensors" for rank in range(12)]
COMMON = ["latest", "step/mp_rank_00_model_states.pt"]
PROGRESS = [f"progress-{rank}.json" for rank in range(12)]
MODEL = {
    stage: f"step/{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt"
    for stage in (0, 1, 3)
}
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


ATTACKS: list[Callable[[Path, Payload], None]] = [
    inside_the_state,
    in_legacy_format,
    as_plain_pickle,
]


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


def of_two_ranks(source: Path, folder: Path) -> Path:
    """Copy the checkpoint of one rank, and repeat the files of rank 0 as those of rank 1."""
    shutil.copytree(source, folder)
    for file in [
        path for path in folder.rglob("*") if "rank_0_" in path.name or "progress-0" in path.name
    ]:
        shutil.copy(
            file, file.with_name(file.name.replace("rank_0_", "rank_1_").replace("-0", "-1"))
        )
    return folder


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("stage", "name"), READ)
def test_a_checkpoint_with_code_is_rejected_and_the_code_does_not_run(
    checkpoints: dict[int, Path],
    tmp_path: Path,
    stage: int,
    name: str,
    attack: Callable[[Path, Payload], None],
) -> None:
    folder, marker = shutil.copytree(checkpoints[stage], tmp_path / "copy"), tmp_path / "it-ran"
    attack(folder / name, Payload(marker))
    with pytest.raises(
        UnusableCheckpoint,
        match=rf"checkpoint {folder.as_uri()} was changed .*{name}.* check the write permissions",
    ):
        resume(folder, stage=stage)
    assert not marker.exists()


@pytest.mark.parametrize(("stage", "name"), READ)
def test_deepspeed_loads_a_checkpoint_without_running_its_code(
    checkpoints: dict[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    name: str,
) -> None:
    # Simulate a file that was changed after the check.
    monkeypatch.setattr(checkpoint, "find_unsafe_file", lambda _: None)
    folder, marker = shutil.copytree(checkpoints[stage], tmp_path / "copy"), tmp_path / "it-ran"
    inside_the_state(folder / name, Payload(marker))
    with pytest.raises(pickle.UnpicklingError):
        resume(folder, stage=stage)
    assert not marker.exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("stage", "name"), READ[1:])
def test_with_another_number_of_ranks_a_checkpoint_with_code_is_rejected_and_the_code_does_not_run(
    checkpoints: dict[int, Path],
    tmp_path: Path,
    stage: int,
    name: str,
    attack: Callable[[Path, Payload], None],
) -> None:
    folder, marker = of_two_ranks(checkpoints[stage], tmp_path / "copy"), tmp_path / "it-ran"
    attack(folder / name, Payload(marker))
    with pytest.raises(
        UnusableCheckpoint,
        match=rf"checkpoint {folder.as_uri()} was changed .*{name}.* check the write permissions",
    ):
        resume(folder, stage=stage)
    assert not marker.exists()


@pytest.mark.parametrize("name", [MODEL[1], OPTIMIZER])
def test_with_another_number_of_ranks_code_does_not_run_without_the_check(
    checkpoints: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(safe_checkpoint_loading, "_problem", lambda _: None)
    folder, marker = of_two_ranks(checkpoints[1], tmp_path / "copy"), tmp_path / "it-ran"
    inside_the_state(folder / name, Payload(marker))
    with pytest.raises(pickle.UnpicklingError):
        resume(folder, stage=1)
    assert not marker.exists()


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_without_the_shard_of_a_rank_is_rejected(
    checkpoints: dict[int, Path], tmp_path: Path, stage: int
) -> None:
    folder = of_two_ranks(checkpoints[stage], tmp_path / "copy")
    (folder / OPTIMIZER).unlink()
    with pytest.raises(UnusableCheckpoint, match="has 1 shards instead of 2"):
        resume(folder, stage=stage)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_of_another_model_is_rejected(
    checkpoints: dict[int, Path], tmp_path: Path, stage: int
) -> None:
    folder = of_two_ranks(checkpoints[stage], tmp_path / "copy")
    runtime, config = (
        small_runtime(dropout=0.0, hidden_size=64),
        config_of(zero_stage=stage, epochs=1),
    )
    with pytest.raises(
        UnusableCheckpoint, match=r"does not fit the model: \d+ instead of \d+ values of "
    ):
        checkpoint.resume(config, runtime, uri=folder.as_uri())


def without_optimizer(content: dict[str, Any]) -> Any:
    return {name: value for name, value in content.items() if name != "optimizer_state_dict"}


def with_other_optimizer(content: dict[str, Any]) -> Any:
    return content | {"optimizer_state_dict": dict.fromkeys(content["optimizer_state_dict"])}


def without_schedule(content: dict[str, Any]) -> Any:
    return {name: value for name, value in content.items() if name != "lr_scheduler"}


def as_list(content: dict[str, Any]) -> Any:
    return list(content)


@pytest.mark.parametrize(
    ("stage", "name", "change"),
    [
        *(
            (stage, OPTIMIZER, change)
            for stage in (1, 3)
            for change in (without_optimizer, with_other_optimizer, as_list)
        ),
        *(
            (stage, MODEL[stage], change)
            for stage in (1, 3)
            for change in (without_schedule, as_list)
        ),
    ],
)
def test_a_checkpoint_with_another_layout_is_rejected(
    checkpoints: dict[int, Path],
    tmp_path: Path,
    stage: int,
    name: str,
    change: Callable[[dict[str, Any]], Any],
) -> None:
    folder = of_two_ranks(checkpoints[stage], tmp_path / "copy")
    torch.save(change(torch.load(folder / name, weights_only=False)), folder / name)
    with pytest.raises(
        UnusableCheckpoint, match=rf"does not have the layout of DeepSpeed {VERSION} \(\w+Error: "
    ):
        resume(folder, stage=stage)


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("data.pkl", "is not a torch file"),
        ("data/0", "is not a torch file"),
        ("data/4", "truncated"),
    ],
)
def test_a_shard_with_a_missing_part_is_rejected(
    checkpoints: dict[int, Path], tmp_path: Path, missing: str, problem: str
) -> None:
    folder = of_two_ranks(checkpoints[1], tmp_path / "copy")
    with (
        zipfile.ZipFile(checkpoints[1] / OPTIMIZER) as source,
        zipfile.ZipFile(folder / OPTIMIZER, "w") as target,
    ):
        for name in source.namelist():
            if not name.endswith(f"/{missing}"):
                target.writestr(name, source.read(name))
    with pytest.raises(UnusableCheckpoint, match=f"{OPTIMIZER} .*{problem}"):
        resume(folder, stage=1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_payload_runs_without_protection(
    checkpoints: dict[int, Path], tmp_path: Path, attack: Callable[[Path, Payload], None]
) -> None:
    file, marker = tmp_path / "state.pt", tmp_path / "it-ran"
    shutil.copy(checkpoints[1] / OPTIMIZER, file)
    attack(file, Payload(marker))
    torch.load(file, weights_only=False) if attack is not as_plain_pickle else pickle.loads(
        file.read_bytes()
    )
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


@pytest.mark.parametrize("start", [0, 5])
def test_the_header_of_a_file_has_the_positions_of_its_values(tmp_path: Path, start: int) -> None:
    values = torch.arange(100.0)
    torch.save({"other": torch.zeros(3), "values": values[10:60]}, tmp_path / "state.pt")
    with (tmp_path / "state.pt").open("rb") as file:
        with tensors_only():
            header = read_header(file, "state.pt", uri="")
        assert header["values"].is_meta
        file.seek(position_in_file(header["values"][start:]))
        content = torch.frombuffer(bytearray(file.read(40)), dtype=torch.float32)
    assert torch.equal(content, values[10 + start : 20 + start])


def test_an_error_of_the_storage_does_not_make_a_checkpoint_unusable(
    checkpoints: dict[int, Path],
) -> None:
    with (checkpoints[1] / OPTIMIZER).open("rb") as file, tensors_only():
        on_s3 = mock.Mock(wraps=file)
        read_header(on_s3, OPTIMIZER, uri="s3://bucket")
        file.seek(0)
        on_s3.read.side_effect = OSError("AWS Error NETWORK_CONNECTION")
        with pytest.raises(StorageError, match=f"s3://bucket/{OPTIMIZER}"):
            read_header(on_s3, OPTIMIZER, uri="s3://bucket")


def test_an_error_of_the_storage_names_the_file_that_was_read(
    checkpoints: dict[int, Path], tmp_path: Path
) -> None:
    folder = of_two_ranks(checkpoints[1], tmp_path / "copy")
    (folder / OPTIMIZER).unlink()
    (folder / OPTIMIZER).symlink_to("/proc/self/mem")  # can be opened, but not read
    with pytest.raises(StorageError, match=f"{folder.as_uri()}/{OPTIMIZER}"):
        resume(folder, stage=1)


def test_the_header_of_a_file_is_read_in_few_requests(tmp_path: Path) -> None:
    torch.save({str(number): torch.zeros(1000) for number in range(500)}, tmp_path / "state.pt")
    with (tmp_path / "state.pt").open("rb") as file, tensors_only():
        counted = mock.Mock(wraps=file)
        assert len(read_header(counted, "state.pt", uri="")) == 500
    assert (
        counted.read.call_count <= 3
    )  # the first block and the last ones; torch itself reads 33 times


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


def test_a_node_downloads_the_shards_of_its_own_ranks() -> None:
    needed = checkpoint.files_to_download(
        [*SHARDS, *STATES, *COMMON, *PROGRESS], ranks={4, 11}, changed=False
    )
    assert needed == {*COMMON, SHARDS[4], STATES[4], SHARDS[11], STATES[11]}


def test_with_another_number_of_ranks_no_random_state_is_downloaded() -> None:
    assert checkpoint.files_to_download(
        [*STATES, *COMMON, *PROGRESS], ranks={0}, changed=True
    ) == set(COMMON)


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
