"""Conditional writes by ETag. On S3 they use s3fs, since pyarrow does not support them.

The ETag of a local file is the sha256 of its content. Writers of a local file hold a lock on its
folder, which is enforced between the processes of one machine.
"""

import fcntl
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tailorbird.storage import s3
from tailorbird.storage.objects import exists, read_bytes, write_bytes
from tailorbird.storage.s3 import ObjectNotFound, PreconditionFailed, StorageError, storage_errors
from tailorbird.storage.stored_model import StoredModel

M = TypeVar("M", bound=StoredModel)
NUM_ATTEMPTS = 50
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5


def delete(uri: str) -> None:
    """Delete an object if it exists. Unlike pyarrow's delete, it leaves no empty folder marker on
    S3."""
    local = _local_file(uri)
    if local is not None:
        with storage_errors(uri):
            local.unlink(missing_ok=True)
        return
    path = _object_path(uri)
    with storage_errors(uri):
        s3.s3fs_client().rm_file(path)


def read_versioned(uri: str) -> tuple[bytes, str] | None:
    """Return the content and the ETag of an object, for `write_if_match`; None if it does not
    exist.

    The ETag is read before the content: if the object changes in between, a write with this ETag
    fails.
    """
    local = _local_file(uri)
    if local is not None:
        with suppress(ObjectNotFound), storage_errors(uri):
            content = local.read_bytes()
            return content, _local_etag(content)
        return None
    path = _object_path(uri)
    client = s3.s3fs_client()
    with suppress(ObjectNotFound), storage_errors(uri):
        info = client.info(path, refresh=True)
        if info["type"] == "file":
            return bytes(client.cat_file(path, max_concurrency=1)), str(info["ETag"])
    return None


def write_if_match(uri: str, data: bytes, *, etag: str | None) -> str:
    """Write an object only if it still has this ETag, or, without an ETag, only if it does not
    exist.

    Return the new ETag.

    Raises PreconditionFailed if another writer has changed or created the object.
    """
    local = _local_file(uri)
    if local is not None:
        return _write_local(uri, local, data, etag=etag)
    path = _object_path(uri)
    # A single PUT for any size: s3fs's multipart upload drops the condition on the ETag.
    condition = {"mode": "create"} if etag is None else {"IfMatch": etag}
    try:
        with storage_errors(uri):
            answer = s3.s3fs_client().pipe_file(
                path, data, chunksize=max(1, len(data)), **condition
            )
    except (PreconditionFailed, ObjectNotFound) as error:
        raise _precondition_failed(uri) from error
    return str(answer["ETag"])


def write_once(uri: str, value: M) -> M:
    """Write the value unless the object exists, and return the stored value (the first
    writer's)."""
    if not exists(uri):
        with suppress(PreconditionFailed):  # another process wrote it first
            write_if_match(uri, value.model_dump_json(indent=2).encode(), etag=None)
    return type(value).model_validate_json(read_bytes(uri))


def update_bytes(uri: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
    """Change an object by compare-and-swap and return the stored content.

    `change` receives the stored content, or None if there is no object. It returns the new content,
    or None to keep the stored one. It is called again if another writer has changed the object in
    between, so it must not have side effects. Raises StorageError after 50 attempts.
    """
    for attempt in range(NUM_ATTEMPTS):
        stored = read_versioned(uri)
        content = None if stored is None else stored[0]
        changed = change(content)
        if changed is None:
            return content
        try:
            write_if_match(uri, changed, etag=stored[1] if stored else None)
        except PreconditionFailed:
            # Another writer changed the object, or the client repeated a successful write.
            time.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)))
            continue
        return changed
    raise StorageError(
        f"{uri} was changed by other writers during {NUM_ATTEMPTS} attempts; try again later"
    )


def _write_local(uri: str, local: Path, data: bytes, *, etag: str | None) -> str:
    with storage_errors(uri):
        local.parent.mkdir(parents=True, exist_ok=True)
        with _locked(local.parent):
            current = _local_etag(local.read_bytes()) if local.exists() else None
            if current != etag:
                raise _precondition_failed(uri)
            write_bytes(uri, data)
    return _local_etag(data)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a local folder. No lock file is written, because readers list the folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _local_file(uri: str) -> Path | None:
    """Return the path of a `file://` URI, or None for another scheme."""
    scheme, path = s3.parse(uri)
    if scheme == "file":
        return Path(path)
    return None


def _local_etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _precondition_failed(uri: str) -> PreconditionFailed:
    return PreconditionFailed(
        f"{uri} was not written, because it exists or has changed; read it again and retry"
    )


def _object_path(uri: str) -> str:
    scheme, path = s3.parse(uri)
    if scheme != "s3" or not path.partition("/")[2]:
        raise StorageError(
            f"{uri!r} does not support conditional writes; give s3://bucket/key or a file:// URI"
        )
    return path
