import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster.job_package import RECIPE_FILE, PackageError, pack, shipped_files
from tailorbird import PACKAGES
from tailorbird.config.base import digest
from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.storage.code_files import code_sha256, runtime_files

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TEMPLATE_GITIGNORE = "data/\nmodels/\n.env\n"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPES[0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project folder with the packages, a page, a file with secrets, and the .gitignore of a
    template."""
    for name in (*PACKAGES, "tailorbird/data", "tailorbird/models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f'"""{name}"""\n')
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "page.md").write_text("as committed\n")
    (tmp_path / ".env").write_text("AWS_SECRET_ACCESS_KEY=x\n")
    (tmp_path / ".gitignore").write_text(TEMPLATE_GITIGNORE)
    return tmp_path


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


def _unpacked(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder


def test_tracked_files_are_packaged_as_they_are_in_the_working_tree(
    root: Path, recipe: Recipe, tmp_path: Path
) -> None:
    _git(root, "init", "-q")
    (root / "gone.md").write_text("soon\n")
    _git(root, "add", ".")
    (root / "page.md").write_text("as it is now\n")
    (root / "gone.md").unlink()
    (root / "never-added.csv").write_text("text\n")
    (root / "tailorbird" / "data" / "new_module.py").write_text("VALUE = 1\n")
    folder = _unpacked(pack(root, recipe=recipe), tmp_path / "shipped")
    assert (folder / "page.md").read_text() == "as it is now\n"
    assert digest(load_recipe(folder / RECIPE_FILE)) == digest(recipe)
    assert code_sha256(runtime_files(folder)) == code_sha256(runtime_files(root))
    assert not any(
        (folder / name).exists() for name in (".env", ".git", "gone.md", "never-added.csv")
    )


def test_without_a_git_checkout_only_runtime_files_are_packaged(root: Path) -> None:
    inner = (f"tailorbird/{name}/__init__.py" for name in ("data", "models"))
    assert set(shipped_files(root)) == {
        "pyproject.toml",
        *(f"{name}/__init__.py" for name in PACKAGES),
        *inner,
    }


def test_an_error_of_git_is_reported_instead_of_packaging_fewer_files(root: Path) -> None:
    _git(root, "init", "-q")
    (root / ".git" / "index").write_bytes(b"no index at all, and long enough")
    with pytest.raises(PackageError):
        shipped_files(root)


def test_the_error_for_a_package_over_the_limit_lists_the_largest_files(
    root: Path, recipe: Recipe
) -> None:
    _git(root, "init", "-q")
    (root / "large.bin").write_bytes(os.urandom(3 * 2**20))
    assert len(pack(root, recipe=recipe, limit_bytes=2 * 2**20)) < 2**20  # it is not tracked
    _git(root, "add", ".")
    with pytest.raises(PackageError, match=r"large\.bin"):
        pack(root, recipe=recipe, limit_bytes=2 * 2**20)
