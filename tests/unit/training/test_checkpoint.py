"""Checkpoints: files that are missing, changed or of another model, and their uploads."""

import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tailorbird.storage import StorageError, open_file
from tests.payload import Payload
from tests.unit.training.engine.reads import RecordedFile
from tests.unit.training.small import resumed, small_runtime, trained
from training import checkpoint
from training.checkpoint import Upload
from training.errors import UnusableCheckpoint, staging_directory
from training.reports import Progress

LIMIT_S = 20
STAGES = (0, 1, 3)
FILES = ("rank-0.json", "state-0.safetensors", "rng-0.safetensors")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints by ZeRO stage."""
    folders = {}
    for stage in STAGES:
        folders[stage] = tmp_path_factory.mktemp(f"stage-{stage}")
        with trained(small_runtime(dropout=0.0), zero_stage=stage, epochs=1) as (engine, _):
            checkpoint.save(engine, folder=folders[stage], progress=Progress(epoch=1))
    return folders


def resume(folder: Path, *, stage: int, **model: Any) -> None:
    resumed(small_runtime(dropout=0.0, **model), folder, zero_stage=stage, epochs=1)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", FILES)
def test_code_in_a_checkpoint_is_rejected_and_does_not_run(
    checkpoints: dict[int, Path], tmp_path: Path, stage: int, name: str
) -> None:
    folder, marker = shutil.copytree(checkpoints[stage], tmp_path / "copy"), tmp_path / "it-ran"
    (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(UnusableCheckpoint, match=f"{folder.as_uri()}/{name} "):
        resume(folder, stage=stage)
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_truncated_file_is_rejected(
    checkpoints: dict[int, Path], tmp_path: Path, stage: int
) -> None:
    folder = shutil.copytree(checkpoints[stage], tmp_path / "copy")
    file = folder / "state-0.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UnusableCheckpoint, match=r"state-0.safetensors is truncated: "):
        resume(folder, stage=stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_another_model_is_rejected(
    checkpoints: dict[int, Path], stage: int
) -> None:
    with pytest.raises(
        UnusableCheckpoint, match=r"does not fit the model: \d+ instead of \d+ values of "
    ):
        resume(checkpoints[stage], stage=stage, hidden_size=64)


@pytest.mark.parametrize("change", [{"pieces": []}, {"positions": {}}])
def test_a_record_without_a_value_of_the_model_is_rejected(
    checkpoints: dict[int, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = shutil.copytree(checkpoints[1], tmp_path / "copy")
    record = json.loads((folder / "rank-0.json").read_text())
    record["state"] |= change
    (folder / "rank-0.json").write_text(json.dumps(record))
    with pytest.raises(UnusableCheckpoint, match="does not fit the model: "):
        resume(folder, stage=1)


def test_a_checkpoint_without_the_record_of_a_rank_is_rejected(
    checkpoints: dict[int, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints[1], tmp_path / "copy")
    (folder / "rank-0.json").rename(folder / "rank-1.json")
    with pytest.raises(UnusableCheckpoint, match=r"lacks rank-0\.json"):
        resume(folder, stage=1)
    (folder / "rank-1.json").unlink()
    with pytest.raises(UnusableCheckpoint, match="contains no state"):
        resume(folder, stage=1)


def test_an_error_of_the_storage_does_not_make_a_checkpoint_unusable(
    checkpoints: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class LostFile(RecordedFile):
        def readinto(self, buffer: Any) -> int:  # noqa: ARG002
            raise OSError("AWS Error NETWORK_CONNECTION")

    @contextmanager
    def open_lost(uri: str) -> Iterator[Any]:
        with open_file(uri) as file:
            yield LostFile(file, [])

    monkeypatch.setattr("training.engine.resharding.open_file", open_lost)
    uri = checkpoints[1].as_uri()
    with pytest.raises(StorageError, match=f"{uri}/state-0.safetensors"):
        resume(checkpoints[1], stage=1)


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
