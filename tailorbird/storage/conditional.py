"""S3 objects with their ETag: conditional writes, which pyarrow has no call for, through s3fs."""

import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tailorbird.storage import s3
from tailorbird.storage.objects import NUM_TRANSFERS
from tailorbird.storage.s3 import PreconditionFailed, StorageError, storage_errors

NUM_ATTEMPTS = 50
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5


def head(uri: str) -> tuple[str, int]:
    """Return an S3 object's ETag and size in bytes; raise StorageError if it does not exist."""
    path = _object_path(uri)
    with storage_errors(uri):
        info = s3.conditional_client().info(path, refresh=True)
        if info["type"] != "file":
            raise FileNotFoundError(uri)
    return str(info["ETag"]), int(info["size"])


def heads(uris: Sequence[str]) -> list[tuple[str, int]]:
    """Return `head` of each URI, several at a time."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        return list(pool.map(head, uris))


def delete(uri: str) -> None:
    """Delete one S3 object, if it exists, without leaving an empty folder marker."""
    path = _object_path(uri)
    with storage_errors(uri):
        s3.conditional_client().rm_file(path)


def read_versioned(uri: str) -> tuple[bytes, str] | None:
    """Return an object's content with its ETag, for `write_if_match`; None if it does not exist.

    The ETag is taken before the content: if the object changes in between, a write on this ETag is refused.
    """
    path, client = _object_path(uri), s3.conditional_client()
    with storage_errors(uri):
        try:
            info = client.info(path, refresh=True)
            if info["type"] != "file":
                return None
            return bytes(client.cat_file(path, max_concurrency=1)), str(info["ETag"])
        except (OSError, ClientError, BotoCoreError) as error:
            if not s3.is_absent(error):
                raise
            s3.require_bucket(uri)
            return None


def write_if_match(uri: str, data: bytes, *, etag: str | None) -> str:
    """Write an object only if it still has this ETag (None: only if it does not exist yet); return the new ETag.

    Raises PreconditionFailed if another writer was first: read again, decide again, write again.
    """
    path = _object_path(uri)
    # One PUT whatever its size: s3fs's multipart upload drops the condition on an ETag.
    condition = {"mode": "create"} if etag is None else {"IfMatch": etag}
    try:
        answer = s3.conditional_client().pipe_file(path, data, chunksize=max(1, len(data)), **condition)
    except (OSError, ClientError, BotoCoreError) as error:
        if s3.is_conflict(error) or (etag is not None and s3.is_absent(error)):
            was = "it exists already" if etag is None else f"it is no longer the version {etag}"
            raise PreconditionFailed(f"{uri} was not written: {was}; read it again and decide again") from error
        raise s3.to_storage_error(uri, error) from error
    return str(answer["ETag"])


def update_json(uri: str, change: Callable[[Any], Any]) -> Any:
    """Change a JSON object by compare-and-swap; return the value that is stored afterwards.

    `change` gets the stored value, None if there is none, and returns the new value, or None to leave it as it is. It
    is called again with the new state if another writer was first, so it must have no side effects. Raises StorageError
    after 50 attempts, and where the object is not JSON.
    """
    for attempt in range(NUM_ATTEMPTS):
        stored = read_versioned(uri)
        value = None if stored is None else _parse_json(uri, stored[0])
        changed = change(value)
        if changed is None:
            return value
        try:
            write_if_match(uri, json.dumps(changed, indent=1).encode(), etag=stored[1] if stored else None)
        except PreconditionFailed:  # another writer was first, or the client's own retry of a write that succeeded
            time.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)))
            continue
        return changed
    raise StorageError(f"{uri} was changed by others at each of {NUM_ATTEMPTS} attempts; try again when fewer write it")


def _parse_json(uri: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise StorageError(f"{uri} is not JSON: {error}; restore it from a copy") from None


def _object_path(uri: str) -> str:
    scheme, path = s3.parse(uri)
    if scheme != "s3" or not path.partition("/")[2]:
        raise StorageError(f"{uri!r} takes no conditional write; give s3://bucket/key")
    return path
