"""Ships the code that makes a model along with it: a zip named by its content, which serving runs."""

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tailorbird import storage

PACKAGES = ("cluster", "training", "tuning", "serving", "tailorbird")
TOP_FOLDER = "code"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o644 << 16
MOST_BYTES = 64 << 20
"""Of a shipped zip's files, unpacked; ours have under two megabytes."""


@dataclass(frozen=True)
class CodeVersion:
    """The code as shipped: sha256 over the files' names and contents, and the URI of the zip."""

    sha256: str
    uri: str


def ship_code(task_uri: str, root: Path) -> CodeVersion:
    """Puts the project's runtime files, as they lie under `root`, at `<task_uri>/code/<sha256>.zip`, once.

    Only our own files count, so a git checkout and a submitted job's working folder give the same sha256. The zip has
    one top-level folder, as Ray wants of a `working_dir`.
    """
    files = runtime_files(root)
    sha256 = code_sha256(root)
    uri = f"{task_uri.rstrip('/')}/code/{sha256}.zip"
    if not storage.exists(uri):
        storage.write_bytes(uri, _zip(root, files))
    return CodeVersion(sha256=sha256, uri=uri)


def shipped_sha256(content: bytes) -> str:
    """The sha256 that names a shipped zip, from its content; raises ValueError where that is no such zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MOST_BYTES:  # a file is read no further than that
                raise ValueError(f"over {MOST_BYTES >> 20} MiB unpacked, which our code is not")
            files = {name.removeprefix(f"{TOP_FOLDER}/"): archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"not a zip that can be read: {error}") from None
    return _digest_of({name: hashlib.sha256(file).hexdigest() for name, file in files.items()})


def code_sha256(root: Path) -> str:
    """The sha256 by which `ship_code` would name the code under `root`."""
    return _digest(root, runtime_files(root))


def runtime_files(root: Path) -> tuple[str, ...]:
    """Names under `root`, sorted, of the files that running needs; raises ValueError where a package is missing."""
    missing = [name for name in PACKAGES if not (root / name / "__init__.py").is_file()]
    if missing:
        raise ValueError(f"{root} is not the project's folder: {', '.join(missing)} not there; give its root")
    top = [*root.glob("pyproject.toml")]
    inner = [
        path for package in PACKAGES for kind in ("*.py", "*.html", "*.yaml") for path in (root / package).rglob(kind)
    ]
    return tuple(sorted(path.relative_to(root).as_posix() for path in (*top, *inner)))


def _digest(root: Path, files: tuple[str, ...]) -> str:
    return _digest_of({name: storage.sha256_file(root / name) for name in files})


def _digest_of(hashes: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name, sha256 in hashes.items():
        digest.update(f"{name}\n{sha256}\n".encode())
    return digest.hexdigest()


def _zip(root: Path, files: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in files:
            entry = zipfile.ZipInfo(f"{TOP_FOLDER}/{name}", date_time=FIXED_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = FILE_MODE
            archive.writestr(entry, (root / name).read_bytes())
    return buffer.getvalue()
