"""`import tailorbird` imports no other package; the names of the interface are imported when they
are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tailorbird
from tailorbird.interface import client, model, runs

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
    modules = ", ".join(
        f"tailorbird.interface.{name}" for name in ("runs", "model", "client", "notebook")
    )
    assert not top_level_packages(modules) & {"torch", "ray", "transformers", "sklearn", "scipy"}


def test_each_name_is_that_of_its_module_and_has_a_type_in_the_stub() -> None:
    expected = {
        "run": runs.run,
        "compare": runs.compare,
        "load": model.load,
        "Client": client.Client,
    }
    assert {name: getattr(tailorbird, name) for name in expected} == expected
    assert expected.keys() <= set(dir(tailorbird))
    stub = ast.parse((ROOT / "tailorbird" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {
        alias.name: f"{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tailorbird")
        for alias in node.names
    }
    assert imported == {name: value.__module__ for name, value in expected.items()}
    defined = {
        *(
            node.target.id
            for node in stub.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ),
        *(node.name for node in stub.body if isinstance(node, ast.FunctionDef)),
    }
    own = {name for name in defined if hasattr(tailorbird, name)}
    assert own == defined == {"__version__", "PACKAGES", "PROJECT_ROOT", "resource_folder"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tailorbird' has no attribute 'predict'"):
        tailorbird.predict  # type: ignore[attr-defined]  # noqa: B018
