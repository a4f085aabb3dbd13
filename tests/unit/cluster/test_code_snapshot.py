import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster import code_snapshot
from cluster.job_package import shipped_files
from tailorbird import PACKAGES, storage
from tailorbird.storage.code_files import runtime_files

ROOT = Path(__file__).parents[3]


def _checkout(folder: Path) -> Path:
    for name in runtime_files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_the_same_code_in_another_folder_has_the_same_sha256_and_zip(tmp_path: Path) -> None:
    here = code_snapshot.ship_code((tmp_path / "one").as_uri(), ROOT)
    there = code_snapshot.ship_code((tmp_path / "two").as_uri(), _checkout(tmp_path / "job"))
    assert here.sha256 == there.sha256
    assert storage.read_bytes(here.uri) == storage.read_bytes(there.uri)


def test_other_files_in_the_folder_do_not_change_the_sha256(tmp_path: Path) -> None:
    root = _checkout(tmp_path / "job")
    before = runtime_files(root)
    for name in (
        "README.md",
        ".venv/lib/x.py",
        "tests/unit/test_x.py",
        "data/rows.parquet",
        "data/__pycache__/x.pyc",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    assert runtime_files(root) == before


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
    assert set(shipped_files(site_packages)) == names


def test_a_changed_line_changes_the_sha256(tmp_path: Path) -> None:
    root = _checkout(tmp_path / "job")
    before = code_snapshot.ship_code((tmp_path / "home").as_uri(), root)
    with (root / "cluster" / "code.py").open("a") as stream:
        stream.write("# another line\n")
    after = code_snapshot.ship_code((tmp_path / "home").as_uri(), root)
    assert after.sha256 != before.sha256
    assert len(storage.list_files((tmp_path / "home" / "code").as_uri())) == 2


def test_the_zip_has_one_top_level_folder(tmp_path: Path) -> None:
    shipped = code_snapshot.ship_code(tmp_path.as_uri(), ROOT)
    names = zipfile.ZipFile(tmp_path / "code" / f"{shipped.sha256}.zip").namelist()
    assert {name.partition("/")[0] for name in names} == {code_snapshot.TOP_FOLDER}
    assert f"{code_snapshot.TOP_FOLDER}/tailorbird/config/recipe.py" in names


def test_a_folder_that_is_not_the_project_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the project's folder, since cluster, training"):
        code_snapshot.ship_code(tmp_path.as_uri(), tmp_path)


def test_the_sha256_of_a_shipped_zip_is_its_name_and_changes_with_its_files(tmp_path: Path) -> None:
    shipped = code_snapshot.ship_code(tmp_path.as_uri(), ROOT)
    content = storage.read_bytes(shipped.uri)
    assert code_snapshot.shipped_sha256(content) == shipped.sha256
    changed = tmp_path / "changed.zip"
    changed.write_bytes(content)
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr("tailorbird/extra.py", "x = 1\n")
    assert code_snapshot.shipped_sha256(changed.read_bytes()) != shipped.sha256
    for broken in (b"", content[: len(content) // 2], bytes(len(content))):
        with pytest.raises(ValueError, match="not a valid zip"):
            code_snapshot.shipped_sha256(broken)


def test_a_zip_larger_than_the_limit_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tailorbird/a.py", bytes(code_snapshot.MAX_UNPACKED_BYTES + 1))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)  # unpacks a file
    with pytest.raises(ValueError, match="more than 64 MiB unpacked"):
        code_snapshot.shipped_sha256(bomb.getvalue())
