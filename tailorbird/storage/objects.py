"""The only code that talks to S3: everything the project reads or leaves behind passes here, as `s3://` or `file://`."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from tailorbird.storage.s3 import StorageError, explained, filesystem, parse, require_bucket

MANIFEST = "manifest.json"
NUM_TRANSFERS = 8
CHUNK_BYTES = 1 << 20


def is_behind(error: BaseException) -> bool:
    """Whether an error is the store's or was raised for one of its: its message may tell where things lie."""
    return isinstance(error, StorageError) or isinstance(error.__context__, StorageError)


def read_bytes(uri: str) -> bytes:
    """An object's whole content."""
    store, path = filesystem(uri)
    with explained(uri), store.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes, *, patient: bool = False) -> None:
    """Writes an object whole, over one that may be there; `patient` as in `filesystem`."""
    store, path = filesystem(uri, patient=patient)
    with explained(uri):
        if isinstance(store, pafs.LocalFileSystem):
            _write_local(Path(path), lambda temporary: temporary.write_bytes(data))
        else:
            with store.open_output_stream(path) as stream:
                stream.write(data)


def read_json(uri: str) -> Any:
    """The value in a JSON object; raises StorageError where it is none."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"{uri} is not JSON: {error}; give the URI of a JSON file") from None


def write_json(uri: str, value: Any, *, patient: bool = False) -> None:
    """Writes a value as JSON, indented, with sorted keys; `patient` as in `filesystem`."""
    data = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_bytes(uri, data.encode(), patient=patient)


def exists(uri: str) -> bool:
    """Whether a file, or a prefix with something under it, is there; raises StorageError if its bucket is not."""
    store, path = filesystem(uri)
    with explained(uri):
        if store.get_file_info(path.rstrip("/")).type != pafs.FileType.NotFound:
            return True
        require_bucket(uri)
    return False


def state(uri: str) -> list[Any]:
    """A file as it lies there: its URI, its bytes and when it was written."""
    store, path = filesystem(uri)
    with explained(uri):
        info = store.get_file_info(path)
    return [uri, info.size, str(info.mtime_ns)]


def list_files(uri: str) -> list[str]:
    """URIs of the files under a folder, at any depth, sorted; of a file, its own. StorageError if there is none."""
    store, path = filesystem(uri)
    path = path.rstrip("/")
    with explained(uri):
        kind = store.get_file_info(path).type
        if kind == pafs.FileType.NotFound:
            raise FileNotFoundError(uri)
        if kind == pafs.FileType.File:
            return [uri]
        infos = store.get_file_info(pafs.FileSelector(path, recursive=True))
        found = [_uri(store, info.path) for info in infos if info.type == pafs.FileType.File]
        if not found:
            raise FileNotFoundError(uri)
    return sorted(found)


def upload_folder(local: Path, uri: str) -> None:
    """Copies every file of a local folder under `uri`; a `manifest.json` at its top goes last, after the rest."""
    if not local.is_dir():
        raise StorageError(f"{local} is not a folder; give the folder whose files go to {uri}")
    names = sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
    if not names:
        raise StorageError(f"{local} has no files; nothing to upload to {uri}")
    base = uri.rstrip("/")
    _transfer((name for name in names if name != MANIFEST), lambda name: upload_file(local / name, f"{base}/{name}"))
    if MANIFEST in names:
        upload_file(local / MANIFEST, f"{base}/{MANIFEST}")


def delete_folder(uri: str) -> None:
    """Deletes everything under `uri`; where nothing is, nothing happens."""
    store, path = filesystem(uri)
    with explained(uri), suppress(FileNotFoundError):
        store.delete_dir(path.rstrip("/"))


def require_no_way_out(uri: str) -> None:
    """Raises StorageError where a file under `uri` would leave the local folder that the files are copied to."""
    for file in list_files(uri.rstrip("/")):
        _relative(file, uri.rstrip("/"))


def download_folder(uri: str, local: Path) -> None:
    """Copies every file under `uri` into a new local folder, which appears whole or not at all.

    Raises StorageError if `local` is there already and not empty, or a file's name would lead out of it.
    """
    if local.exists() and (not local.is_dir() or any(local.iterdir())):
        raise StorageError(f"{local} is there already; give a new folder for {uri}")
    base = uri.rstrip("/")
    files = list_files(base)
    local.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{local.name}-", dir=local.parent))
    try:
        places = {name: temporary / _relative(name, base) for name in files}
        _transfer(files, lambda name: _download(name, places[name]))
        temporary.chmod(0o755)
        with explained(uri):
            temporary.rename(local)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """sha256 of a local file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_object(uri: str) -> str:
    """sha256 of an object's content, in hex, read in pieces."""
    store, path = filesystem(uri)
    digest = hashlib.sha256()
    with explained(uri), store.open_input_stream(path) as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _uri(store: pafs.FileSystem, path: str) -> str:
    return Path(path).as_uri() if isinstance(store, pafs.LocalFileSystem) else f"s3://{path}"


def _relative(uri: str, base: str) -> str:
    """Path of a listed file under the folder it was listed in.

    Raises StorageError for a key that would be another place on a disk: S3 keys may have any characters, `..` too.
    """
    path, folder = parse(uri)[1], parse(base)[1]
    relative = path.rpartition("/")[2] if path == folder else path.removeprefix(f"{folder}/")
    if not all(part and part not in (".", "..") for part in relative.split("/")) or set(relative) & {"\\", "\0"}:
        raise StorageError(f"{uri!r} has no place in a local folder; find out who wrote it, and delete it")
    return relative


def _transfer(names: Iterable[str], copy: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        for _ in pool.map(copy, names):
            pass


def upload_file(local: Path, uri: str, *, patient: bool = False) -> None:
    """Copies a local file to an object, whole or not at all; `patient` as in `filesystem`."""
    store, path = filesystem(uri, patient=patient)
    with explained(uri), local.open("rb") as source:
        if isinstance(store, pafs.LocalFileSystem):
            _write_local(Path(path), lambda temporary: shutil.copyfile(local, temporary))
        else:
            with store.open_output_stream(path) as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)


def _download(uri: str, local: Path) -> None:
    store, path = filesystem(uri)
    local.parent.mkdir(parents=True, exist_ok=True)
    with explained(uri), store.open_input_stream(path) as source, local.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def _write_local(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside and renames, so that a local file is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
