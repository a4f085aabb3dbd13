"""`import tailorbird` imports no other package; the names of the interface are imported when they
are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tailorbird

ROOT = Path(__file__).parents[3]
LOADED = "import sys, {modules}; print(sorted({{name.partition('.')[0] for name in sys.modules}}))"


def top_level_packages(modules: str) -> set[str]:
    """Return the names of the packages that a new Python process has imported after `import
    modules`."""
    command = [sys.executable, "-c", LOADED.format(modules=modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout))


def test_the_package_imports_only_the_standard_library() -> None:
    others = top_level_packages("tailorbird") - top_level_packages("pathlib")
    assert others - sys.stdlib_module_names == {"tailorbird"}


def test_no_module_of_the_interface_imports_torch_or_ray() -> None:
    modules = ", ".join(f"tailorbird.interface.{name}" for name in ("runs", "model", "notebook"))
    assert not top_level_packages(modules) & {"torch", "ray", "transformers", "sklearn", "scipy"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tailorbird' has no attribute 'predict'"):
        tailorbird.predict  # type: ignore[attr-defined]  # noqa: B018
