"""The project's code as a zip on S3, named by its hash. Models are served with the code that
produced them."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tailorbird import storage
from tailorbird.storage.code_files import code_sha256, runtime_files
from tailorbird.storage.paths import TaskPaths

TOP_FOLDER = "code"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o644 << 16
# limit for an unpacked code zip; the project's code has less than 2 MB
MAX_UNPACKED_BYTES = 64 << 20


@dataclass(frozen=True)
class CodeVersion:
    """A stored code zip: the sha256 over the names and contents of its files, and its URI."""

    sha256: str
    uri: str


def ship_code(task_uri: str, root: Path) -> CodeVersion:
    """Upload the project's runtime files under `root` as a code zip of the task, unless it exists.

    Only the project's own files are included, so a git checkout and the working directory of a
    submitted job have the same sha256. The zip has one top-level folder, as Ray requires for a
    `working_dir`.
    """
    files = runtime_files(root)
    sha256 = code_sha256(files)
    uri = TaskPaths(task_uri.rstrip("/")).code_archive(sha256)
    if not storage.exists(uri):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                write_entry(archive, f"{TOP_FOLDER}/{name}", content)
        storage.write_bytes(uri, buffer.getvalue())
    return CodeVersion(sha256=sha256, uri=uri)


def shipped_sha256(content: bytes) -> str:
    """Return the sha256 of the files in a code zip, which is also its name; raise ValueError if it
    cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (
                sum(info.file_size for info in archive.infolist()) > MAX_UNPACKED_BYTES
            ):  # checked before unpacking
                raise ValueError(
                    f"more than {MAX_UNPACKED_BYTES >> 20} MiB unpacked, so it is not the "
                    "project's code"
                )
            files = {
                name.removeprefix(f"{TOP_FOLDER}/"): archive.read(name)
                for name in archive.namelist()
            }
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        EOFError,
        OSError,
        RuntimeError,
    ) as error:
        raise ValueError(f"not a valid zip: {error}") from None
    return code_sha256(files)


def write_entry(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to a zip with a fixed time and mode, so that the same files give the same zip."""
    entry = zipfile.ZipInfo(name, date_time=FIXED_TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = FILE_MODE
    archive.writestr(entry, content)
