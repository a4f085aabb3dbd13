"""Conditional writes of S3 objects by ETag. They use s3fs, since pyarrow does not support them."""

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
    """Return the ETag and size of each object, like `head`, with concurrent requests."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        return list(pool.map(head, uris))


def delete(uri: str) -> None:
    """Delete an S3 object if it exists. Unlike pyarrow's delete, it leaves no empty folder marker."""
    path = _object_path(uri)
    with storage_errors(uri):
        s3.conditional_client().rm_file(path)


def read_versioned(uri: str) -> tuple[bytes, str] | None:
    """Return the content and the ETag of an object, for `write_if_match`; None if it does not exist.

    The ETag is read before the content: if the object changes in between, a write with this ETag fails.
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
    """Write an object only if it still has this ETag, or, without an ETag, only if it does not exist.

    Return the new ETag.

    Raises PreconditionFailed if another writer has changed or created the object.
    """
    path = _object_path(uri)
    # A single PUT for any size: s3fs's multipart upload drops the condition on the ETag.
    condition = {"mode": "create"} if etag is None else {"IfMatch": etag}
    try:
        answer = s3.conditional_client().pipe_file(path, data, chunksize=max(1, len(data)), **condition)
    except (OSError, ClientError, BotoCoreError) as error:
        if s3.is_conflict(error) or (etag is not None and s3.is_absent(error)):
            reason = "it already exists" if etag is None else f"its ETag is no longer {etag}"
            raise PreconditionFailed(f"{uri} was not written: {reason}; read it again and retry") from error
        raise s3.to_storage_error(uri, error) from error
    return str(answer["ETag"])


def update_json(uri: str, change: Callable[[Any], Any]) -> Any:
    """Change a JSON object by compare-and-swap and return the stored value.

    `change` receives the stored value, or None if there is no object. It returns the new value, or None to keep the
    stored one. It is called again if another writer has changed the object in between, so it must not have side
    effects. Raises StorageError
    after 50 attempts, or if the object is not JSON.
    """
    for attempt in range(NUM_ATTEMPTS):
        stored = read_versioned(uri)
        value = None if stored is None else _parse_json(uri, stored[0])
        changed = change(value)
        if changed is None:
            return value
        try:
            write_if_match(uri, json.dumps(changed, indent=1).encode(), etag=stored[1] if stored else None)
        except PreconditionFailed:  # another writer changed the object, or the client repeated a successful write
            time.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)))
            continue
        return changed
    raise StorageError(f"{uri} was changed by other writers during {NUM_ATTEMPTS} attempts; try again later")


def _parse_json(uri: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise StorageError(f"{uri} is not valid JSON: {error}; restore it from a backup") from None


def _object_path(uri: str) -> str:
    scheme, path = s3.parse(uri)
    if scheme != "s3" or not path.partition("/")[2]:
        raise StorageError(f"{uri!r} does not support conditional writes; give s3://bucket/key")
    return path
