"""The files of the project's code, and their fingerprint."""

import ast
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from tailorbird import PACKAGES, PROJECT_ROOT

WHEEL_ONLY = ("tailorbird/k8s/", "tailorbird/recipes/")
"""Folders of a checkout that a wheel has in its package."""
RUNTIME_SUFFIXES = (".py", ".html", ".css", ".js", ".ndjson", ".yaml")


def code_sha256(files: Mapping[str, bytes]) -> str:
    """Return a hash of the names and contents of files, in their order."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\n{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def runtime_files(root: Path) -> dict[str, bytes]:
    """Return the project's runtime files under `root`, code and data of its packages, by sorted
    name.

    `root` is a checkout, the working directory of a job or the folder of an installed wheel. Raises
    ValueError if a package is missing.
    """
    missing = [name for name in PACKAGES if not (root / name / "__init__.py").is_file()]
    if missing:
        raise ValueError(
            f"{root} is not the project's folder, since {', '.join(missing)} is missing; give the "
            "folder of the project"
        )
    paths = list(root.glob("pyproject.toml"))
    for package in PACKAGES:
        files = (root / package).rglob("*.*")
        paths += [path for path in files if path.suffix in RUNTIME_SUFFIXES]
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    return {name: (root / name).read_bytes() for name in names if not name.startswith(WHEEL_ONLY)}


def source_files(*functions: Callable[..., object], root: Path = PROJECT_ROOT) -> dict[str, bytes]:
    """Return the files under `root` that define or are imported by the functions of a stage, by
    sorted name.

    Imports of the project's packages are followed, also inside functions, but not under `if
    TYPE_CHECKING:`. `from package import name` refers to `package/name.py` if that exists,
    otherwise to `package/__init__.py`. The `__init__.py` of a package that contains an imported
    module is not followed.
    """
    pending = [_file(function.__module__, root) for function in functions]
    assert pending, "a stage runs at least one function"
    assert None not in pending, f"not functions of the project: {functions}"
    reached: dict[str, bytes] = {}
    while pending:
        name = pending.pop()
        if name is not None and name not in reached:
            reached[name] = (root / name).read_bytes()
            imports = _imports(reached[name])
            pending += [
                _file(f"{module}.{item}", root) or _file(module, root) for module, item in imports
            ]
    return dict(sorted(reached.items()))


def _file(module: str, root: Path) -> str | None:
    """Return the source file of a module or package of the project; None for any other module."""
    parts = module.strip(".").split(".")
    if parts[0] in PACKAGES:
        for name in ("/".join(parts) + ".py", "/".join(parts) + "/__init__.py"):
            if (root / name).is_file():
                return name
    return None


@lru_cache(maxsize=1024)
def _imports(source: bytes) -> tuple[tuple[str, str], ...]:
    """Return (module, imported name) of each import; the name is empty for `import module`."""
    return tuple(_imports_of(ast.parse(source)))


def _imports_of(node: ast.AST) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "the project has no relative imports"
            yield from ((str(child.module), alias.name) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _imports_of(ast.Module([other], []))
        else:
            yield from _imports_of(child)
