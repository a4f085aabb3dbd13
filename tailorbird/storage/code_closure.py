"""Fingerprint of the code that a stage runs: the source files that its functions import, directly or indirectly."""

import ast
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from tailorbird import PACKAGES, PROJECT_ROOT
from tailorbird.storage.objects import sha256_file


def code_sha256(*functions: Callable[..., object], root: Path = PROJECT_ROOT) -> str:
    """Return a hash of the names and contents of `source_files(*functions)` under `root`."""
    assert functions, "a stage runs at least one function"
    return digest_of_files({name: sha256_file(root / name) for name in source_files(*functions, root=root)})


def digest_of_files(hashes: Mapping[str, str]) -> str:
    """Return a hash of the names and sha256 of files, in the order of `hashes`."""
    digest = hashlib.sha256()
    for name, sha256 in hashes.items():
        digest.update(f"{name}\n{sha256}\n".encode())
    return digest.hexdigest()


def source_files(*functions: Callable[..., object], root: Path = PROJECT_ROOT) -> tuple[str, ...]:
    """Return the sorted paths, relative to `root`, of the files that define or are imported by the functions.

    Imports of the project's packages are followed, also inside functions, but not under `if TYPE_CHECKING:`.
    `from package import name` refers to `package/name.py` if that exists, otherwise to `package/__init__.py`. The
    `__init__.py` of a package that contains an imported module is not followed.
    """
    pending = [_file(function.__module__, root) for function in functions]
    assert None not in pending, f"not functions of the project: {functions}"
    reached: set[str] = set()
    while pending:
        name = pending.pop()
        if name is not None and name not in reached:
            reached.add(name)
            imports = _imports((root / name).read_bytes())
            pending += [_file(f"{module}.{item}", root) or _file(module, root) for module, item in imports]
    return tuple(sorted(reached))


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
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _imports_of(ast.Module([other], []))
        else:
            yield from _imports_of(child)
