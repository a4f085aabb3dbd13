"""Package of a submitted job: a zip of the files that git tracks and the recipe."""

import io
import os
import subprocess
import zipfile
from pathlib import Path

from cluster.code_snapshot import write_entry
from tailorbird.config.loader import recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.storage.code_files import runtime_files

RECIPE_FILE = "submitted_recipe.yaml"
LIMIT_BYTES = 100 * 2**20  # Ray's dashboard answers larger uploads with 413
NUM_NAMED = 5


class PackageError(ValueError):
    """A package that cannot be created. The message contains the reason and the next step."""


def pack(root: Path, *, recipe: Recipe, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """Return a zip of the files under `root` that a job needs, with the resolved recipe as
    `RECIPE_FILE`.

    The same files give the same zip. Raises PackageError with the largest files if the zip exceeds
    the limit.
    """
    names = shipped_files(root)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        write_entry(archive, RECIPE_FILE, recipe_text(recipe).encode())
        for name in names:
            if name != RECIPE_FILE:
                write_entry(archive, name, (root / name).read_bytes())
            if (
                buffer.tell() > limit_bytes
            ):  # checked for each file, since all files may not fit in memory
                raise PackageError(_too_large(root, names, limit_bytes=limit_bytes))
    return buffer.getvalue()


def shipped_files(root: Path) -> tuple[str, ...]:
    """Return the sorted names under `root` of the files that git tracks and of the project's
    runtime files.

    The runtime files include untracked modules and files that a `.gitignore` excludes (as templates
    do for `data/` or `models/`), so the code of the job has the same sha256 as the code here.
    Without a git checkout, or from an installed wheel, only the runtime files are included: a
    wheel's folder contains other packages too, and may be part of another repository.
    """
    is_checkout = (root / "pyproject.toml").is_file()
    if is_checkout:
        tracked = [name for name in _tracked(root) if (root / name).is_file()]
    else:
        tracked = []
    return tuple(sorted({*tracked, *runtime_files(root)}))


def _tracked(root: Path) -> tuple[str, ...]:
    """Return the names under `root` that git tracks; empty without git or outside a checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z"]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, env=os.environ | {"LC_ALL": "C"}
        )
    except FileNotFoundError:
        return ()
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        if "not a git repository" in message:
            return ()
        raise PackageError(f"git cannot list the tracked files in {root}: {message}")
    return tuple(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)


def _too_large(root: Path, names: tuple[str, ...], *, limit_bytes: int) -> str:
    sizes = sorted(((root / name).stat().st_size, name) for name in names)[: -NUM_NAMED - 1 : -1]
    largest = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes)
    return (
        f"the files that git tracks in {root} make a package over Ray's limit of "
        f"{limit_bytes / 2**20:g} MiB. The largest files are {largest}. Upload data with "
        "`tailorbird data put`, and untrack it with `git rm --cached`"
    )
