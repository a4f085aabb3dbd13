import tomllib
from pathlib import Path

from packaging.utils import canonicalize_name

from cluster.requirements import ALWAYS, Package, requirements

ROOT = Path(__file__).parents[3]


def test_requirements_are_those_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirements()
    assert wanted.python == project["requires-python"]
    assert wanted.packages.keys() == {ALWAYS, *project["optional-dependencies"]}
    assert "tailorbird" not in {name for name, _ in wanted.packages["dev"]}
    assert {package.line for package in wanted.group(ALWAYS)} == {*project["dependencies"]}


def test_without_pyproject_requirements_are_those_of_the_installed_distribution(
    tmp_path: Path,
) -> None:
    names = {name for name, _ in requirements(tmp_path).packages[ALWAYS]}
    assert {"ray", "torch", "deepspeed"} <= names
    assert names <= {canonicalize_name(name) for name, _ in requirements().packages[ALWAYS]}
    assert {"train", "serve", "tune"} <= set(
        requirements(tmp_path).features["ray"].strip("[]").split(",")
    )


def test_a_package_of_a_local_build_fits_if_its_version_does() -> None:
    assert Package("torch", ">=2.8,<2.14", "2.13.0+cpu").fits
