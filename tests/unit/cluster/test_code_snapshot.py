import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster import code_snapshot
from tailorbird import PACKAGES, storage
from tailorbird.storage.code_files import runtime_files

ROOT = Path(__file__).parents[3]


def _checkout(folder: Path) -> Path:
    for name in runtime_files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_the_same_code_in_another_folder_has_the_same_sha256_and_zip(tmp_path: Path) -> None:
    root = _checkout(tmp_path / "job")
    here = code_snapshot.ship_code((tmp_path / "one").as_uri(), ROOT)
    there = code_snapshot.ship_code((tmp_path / "two").as_uri(), root)
    content = storage.read_bytes(here.uri)
    assert content == storage.read_bytes(there.uri)
    assert here.sha256 == there.sha256 == code_snapshot.shipped_sha256(content)
    assert here.uri.endswith(f"/{here.sha256}.zip")
    with (root / "cluster" / "code.py").open("a") as stream:
        stream.write("# another line\n")
    changed = code_snapshot.ship_code((tmp_path / "two").as_uri(), root)
    assert changed.sha256 != there.sha256


def test_all_files_of_the_packages_are_shipped_but_those_that_no_job_reads() -> None:
    command = ["git", "ls-files", *PACKAGES]
    tracked = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    left_out = set(tracked) - set(runtime_files(ROOT))
    assert left_out == {"cluster/ray_up/node.env", "tailorbird/__init__.pyi", "tailorbird/py.typed"}


def test_only_the_code_of_an_installed_wheel_is_shipped(tmp_path: Path) -> None:
    site_packages = _checkout(tmp_path / "site-packages")
    (site_packages / "pyproject.toml").unlink()
    for name in (
        "torch/nn.py",
        "tailorbird-0.2.0.dist-info/METADATA",
        "tailorbird/recipes/icd10_demo.yaml",
    ):
        (site_packages / name).parent.mkdir(parents=True, exist_ok=True)
        (site_packages / name).write_text("x")
    names = set(runtime_files(site_packages))
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    assert "serving/app.py" in names
    assert (
        "tailorbird/recipes/icd10_demo.yaml" not in names
    )  # a checkout has the recipes outside its packages


def test_a_broken_zip_and_another_folder_are_rejected(tmp_path: Path) -> None:
    content = storage.read_bytes(code_snapshot.ship_code(tmp_path.as_uri(), ROOT).uri)
    changed = io.BytesIO(content)
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr("tailorbird/extra.py", "x = 1\n")
    sha256 = code_snapshot.shipped_sha256(changed.getvalue())
    assert sha256 != code_snapshot.shipped_sha256(content)
    for broken in (b"", content[: len(content) // 2], bytes(len(content))):
        with pytest.raises(ValueError, match="not a valid zip"):
            code_snapshot.shipped_sha256(broken)
    with pytest.raises(ValueError, match="is not the project's folder"):
        code_snapshot.ship_code(tmp_path.as_uri(), tmp_path)


def test_a_zip_larger_than_the_limit_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tailorbird/a.py", bytes(code_snapshot.MAX_UNPACKED_BYTES + 1))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)  # unpacks a file
    with pytest.raises(ValueError, match="more than 64 MiB unpacked"):
        code_snapshot.shipped_sha256(bomb.getvalue())
