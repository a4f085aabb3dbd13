"""Cache of S3 folders on this node, shared by its processes."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from tailorbird.storage import objects, s3
from tailorbird.storage.paths import is_staged_base_model

# Files of a model: weights as safetensors (not pickles, which run code when loaded), tokenizer and
# configuration.
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
UNUSED_DAYS = 7
"""Copies that no process has requested for so long are removed. Processes read a copy when they
start."""
LICENSE_NAMES = ("license", "licence", "notice", "use_policy")  # at the start of a file's name


def is_license_file(name: str) -> bool:
    """Return whether a file has the name of a license file. Digests contain only those with a
    suffix of a model."""
    return name.rpartition("/")[2].lower().startswith(LICENSE_NAMES)


def sha256_files(uri: str) -> dict[str, str]:
    """Return the sha256 of each file in a model's folder, by name."""
    files = {}
    for file in objects.list_files(uri):
        name = file.removeprefix(f"{uri}/")
        if name.endswith(MODEL_SUFFIXES) and name != objects.MANIFEST:
            files[name] = objects.sha256_object(file)
    return files


def model_digest(files: Mapping[str, str]) -> str:
    """Return the digest of a model's files, which is in the name of a staged base model."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _require_staged_files(uri: str, folder: Path) -> None:
    """Raise StorageError if the files of a staged base model are not those that its name
    requires."""
    if not is_staged_base_model(uri):
        return
    stated = uri.rstrip("/").rpartition("-")[2]
    digest = model_digest(sha256_files(folder.as_uri()))[: len(stated)]
    if digest != stated:
        raise s3.StorageError(
            f"the base model {uri} was changed: its files have the digest {digest}; restore them "
            "from a copy"
        )


def local_copy(
    uri: str, *, is_intact: Callable[[Path], bool] = lambda _folder: True, cache: Path | None = None
) -> Path:
    """Return a local folder with the files under `uri`, downloaded once per node; a `file://`
    folder is not copied.

    The copy is stored under `cache` (default: `cache_folder()`) and named by the sha256 of the
    folder's manifest.json or, without one, of its listing. If several processes call at the same
    time, one of them downloads. A copy that is not intact is replaced. Before a download, copies
    are removed that were not requested in the last UNUSED_DAYS. Raises StorageError if a staged
    base model was changed.
    """
    scheme, path = s3.parse(uri)
    if scheme == "file":
        objects.list_files(uri)
        return Path(path)
    root = private_folder((cache or cache_folder()) / "folders")
    local = root / _content_key(uri.rstrip("/"))
    with local.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.fileno())  # the time of the last request
        if not (local.exists() and is_intact(local)):
            shutil.rmtree(local, ignore_errors=True)
            _remove_unused(root)
            objects.download_folder(uri, local, check=partial(_require_staged_files, uri))
    return local


def _remove_unused(root: Path) -> None:
    """Remove the copies that no process has requested for UNUSED_DAYS, except those that are
    locked."""
    last = time.time() - UNUSED_DAYS * 24 * 3600
    for path in root.glob("*.lock"):
        with path.open("r+") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_mtime < last:
                shutil.rmtree(root / path.stem, ignore_errors=True)


def private_folder(folder: Path) -> Path:
    """Return the folder, which only this user can enter after the call. It is created if necessary.

    Raises StorageError if another user has created it and others can write to it: they could
    replace what this process reads, and read what it writes.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.geteuid():
        if status.st_mode & 0o077:
            folder.chmod(0o700)
    elif status.st_mode & 0o022:
        raise s3.StorageError(
            f"{folder} belongs to another user, and others can write to it; set TAILORBIRD_CACHE, "
            "or for the request log TAILORBIRD_JOURNAL, to a folder of this user"
        )
    return folder


def cache_folder() -> Path:
    """Return the node's cache folder: TAILORBIRD_CACHE, or ~/.cache/tailorbird."""
    return Path(os.environ.get("TAILORBIRD_CACHE") or Path.home() / ".cache" / "tailorbird")


def _content_key(uri: str) -> str:
    manifest = f"{uri}/{objects.MANIFEST}"
    if objects.exists(manifest):
        return hashlib.sha256(objects.read_bytes(manifest)).hexdigest()
    listing = sorted((info.path, info.size, str(info.mtime_ns)) for info in objects.file_infos(uri))
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
