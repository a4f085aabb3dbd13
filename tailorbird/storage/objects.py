"""Read, write and list objects at `s3://` and `file://` URIs, with pyarrow."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from tailorbird.storage.s3 import (
    STANDARD,
    RetryPolicy,
    StorageError,
    filesystem,
    parse,
    require_bucket,
    s3fs_client,
    storage_errors,
)

MANIFEST = "manifest.json"
NUM_TRANSFERS = 8
CHUNK_BYTES = 1 << 20


def comes_from_storage(error: BaseException) -> bool:
    """Return True if the error came from storage, so its message may contain a URI that clients
    must not see."""
    return isinstance(error, StorageError) or isinstance(error.__context__, StorageError)


def read_bytes(uri: str) -> bytes:
    """Return an object's content, also while another process replaces the object.

    On S3 it is read with a single GET. pyarrow reads the size first, and then as many bytes of what
    is stored by then.
    """
    scheme, path = parse(uri)
    with storage_errors(uri):
        if scheme == "file":
            return Path(path).read_bytes()
        return bytes(s3fs_client().cat_file(path, max_concurrency=1))


def write_bytes(uri: str, data: bytes, *, retry_policy: RetryPolicy = STANDARD) -> None:
    """Write an object, replacing an existing one. Readers never see it incomplete."""
    _write(uri, lambda stream: stream.write(data), retry_policy=retry_policy)


@contextmanager
def open_file(uri: str) -> Iterator[Any]:
    """Yield an object as an open file of pyarrow. Several threads can call its `read_at(num_bytes,
    offset)`."""
    store, path = filesystem(uri)
    with storage_errors(uri), store.open_input_file(path) as file:
        yield file


def read_json(uri: str) -> Any:
    """Return the value of a JSON object; raise StorageError if it is not JSON."""
    return parse_json(uri, read_bytes(uri))


def parse_json(uri: str, data: bytes) -> Any:
    """Return the value of an object's content; raise StorageError if it is not JSON."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(
            f"{uri} is not valid JSON: {error}; give the URI of a JSON file, or restore it"
        ) from None


def write_json(uri: str, value: Any, *, retry_policy: RetryPolicy = STANDARD) -> None:
    """Write a value as JSON, indented, with sorted keys."""
    data = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_bytes(uri, data.encode(), retry_policy=retry_policy)


def exists(uri: str) -> bool:
    """Return True if `uri` is a file or a prefix of files; raise StorageError if the bucket does
    not exist."""
    store, path = filesystem(uri)
    with storage_errors(uri):
        if store.get_file_info(path.rstrip("/")).type != pafs.FileType.NotFound:
            return True
        require_bucket(uri)
    return False


def list_files(uri: str, *, missing_ok: bool = False) -> list[str]:
    """Return the sorted URIs of all files under a folder, recursively; for a file, its own URI.

    Raises StorageError if there are none, unless `missing_ok` is true.
    """
    store, path = filesystem(uri)
    with storage_errors(uri):
        if store.get_file_info(path.rstrip("/")).type == pafs.FileType.File:
            return [uri]
    return sorted(_uri(store, info.path) for info in file_infos(uri, missing_ok=missing_ok))


def file_infos(uri: str, *, missing_ok: bool = False) -> list[pafs.FileInfo]:
    """Return pyarrow's description of all files under a folder, recursively.

    Raises StorageError if there are none, unless `missing_ok` is true.
    """
    store, path = filesystem(uri)
    with storage_errors(uri):
        infos = store.get_file_info(
            pafs.FileSelector(path.rstrip("/"), allow_not_found=True, recursive=True)
        )
        files = [info for info in infos if info.type == pafs.FileType.File]
        if not files and not missing_ok:
            raise FileNotFoundError(uri)
    return files


def upload_folder(local: Path, uri: str) -> None:
    """Upload all files of a local folder to `uri`; the `manifest.json` at the top of the folder
    comes last."""
    if not local.is_dir():
        raise StorageError(f"{local} is not a folder; give a folder to upload to {uri}")
    paths = filter(Path.is_file, local.rglob("*"))
    names = sorted(path.relative_to(local).as_posix() for path in paths)
    if not names:
        raise StorageError(f"{local} has no files to upload to {uri}")
    base = uri.rstrip("/")
    _transfer(
        (name for name in names if name != MANIFEST),
        lambda name: upload_file(local / name, f"{base}/{name}"),
    )
    if MANIFEST in names:
        upload_file(local / MANIFEST, f"{base}/{MANIFEST}")


def delete_folder(uri: str) -> None:
    """Delete everything under `uri`, if it exists."""
    store, path = filesystem(uri)
    with storage_errors(uri), suppress(FileNotFoundError):
        store.delete_dir(path.rstrip("/"))


def download_folder(
    uri: str,
    local: Path,
    *,
    check: Callable[[Path], None] = lambda _folder: None,
) -> None:
    """Download all files under `uri` into a new local folder atomically. Only its owner can enter
    the folder.

    `check` receives the folder before it appears under its name, and raises to refuse it. Raises
    StorageError if `local` exists and is not empty, or if a file would be written outside it.
    """
    if local.exists() and (not local.is_dir() or any(local.iterdir())):
        raise StorageError(f"{local} already exists; give a new folder for {uri}")
    base = uri.rstrip("/")
    files = list_files(base)
    local.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{local.name}-", dir=local.parent))
    try:
        names = {file: _relative(file, base) for file in files}
        _transfer(names, lambda file: _download(file, temporary / names[file]))
        check(temporary)
        with storage_errors(uri):
            temporary.rename(local)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a local file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_object(uri: str) -> str:
    """Return the sha256 of an object's content, in hex. The object is read in chunks."""
    store, path = filesystem(uri)
    digest = hashlib.sha256()
    with storage_errors(uri), store.open_input_stream(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _uri(store: pafs.FileSystem, path: str) -> str:
    if isinstance(store, pafs.LocalFileSystem):
        return Path(path).as_uri()
    return f"s3://{path}"


def _relative(uri: str, base: str) -> str:
    """Return the path of a listed file relative to the folder that was listed.

    S3 keys can contain `..`, so it raises StorageError for a path outside the folder.
    """
    path = parse(uri)[1]
    folder = parse(base)[1]
    relative = path.rpartition("/")[2] if path == folder else path.removeprefix(f"{folder}/")
    is_unsafe = not {"", ".", ".."}.isdisjoint(relative.split("/"))
    if is_unsafe or not {"\\", "\0"}.isdisjoint(relative):
        raise StorageError(
            f"{uri!r} would be stored outside its local folder; find out how it was created, and "
            "delete it"
        )
    return relative


def _transfer(names: Iterable[str], copy: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        list(pool.map(copy, names))  # raises the first error


def upload_file(local: Path, uri: str, *, retry_policy: RetryPolicy = STANDARD) -> None:
    """Upload a local file atomically."""
    with storage_errors(uri), local.open("rb") as source:
        _write(
            uri,
            lambda target: shutil.copyfileobj(source, target, CHUNK_BYTES),
            retry_policy=retry_policy,
        )


def _download(uri: str, local: Path) -> None:
    store, path = filesystem(uri)
    local.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors(uri), store.open_input_stream(path) as source, local.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def _write(uri: str, write: Callable[[Any], Any], *, retry_policy: RetryPolicy) -> None:
    """Pass a stream to `write`.

    A local file is written to a temporary name and renamed, so it is never incomplete. Only its
    owner can read it.
    """
    store, path = filesystem(uri, retry_policy=retry_policy)
    with storage_errors(uri):
        if not isinstance(store, pafs.LocalFileSystem):
            with store.open_output_stream(path) as stream:
                write(stream)
            return
        local = Path(path)
        local.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{local.name}-", dir=local.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                write(stream)
            temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)
