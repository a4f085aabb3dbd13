"""What is installed is everything that there is: the command works from any folder."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_installed() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {name.removesuffix("*") for name in tools["packages"]["find"]["include"]} == packages - {
        "tests",
        "benchmarks",
    }
    assert not list(ROOT.glob("*.py"))
    for package in packages:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_nobody_is_told_to_install_by_a_name_that_no_index_has() -> None:
    places = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "k8s" / "README.md"]
    places += [path for package in ROOT.glob("*/__init__.py") for path in package.parent.rglob("*.py")]
    outside = [path for path in places if "tests" not in path.relative_to(ROOT).parts]
    assert len(outside) > 100
    told = re.compile(r"(?<!/)tailorbird\[|pip install tailorbird")
    assert [path.name for path in outside if told.search(path.read_text(encoding="utf-8"))] == []
