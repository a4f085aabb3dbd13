"""What is installed is everything that there is: the command works from any folder."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_module_and_package_is_installed() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(tools["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(tools["packages"]) == packages - {"tests", "benchmarks"}
