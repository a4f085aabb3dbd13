"""Cache of stages on S3. The output of a stage is stored under a fingerprint of its inputs."""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from pydantic import JsonValue, TypeAdapter

from tailorbird.storage.conditional import write_if_match
from tailorbird.storage.objects import delete_folder, exists, read_bytes
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import PreconditionFailed, StorageError
from tailorbird.storage.stored_model import StoredModel

T = TypeVar("T")


class _Done(StoredModel):
    """Content of `done.json`, which is written last, so that an interrupted stage is computed
    again."""

    inputs: dict[str, JsonValue]
    value: JsonValue


def cached_stage(
    task_uri: str,
    name: str,
    *,
    output: type[T],
    inputs: Mapping[str, object],
    compute: Callable[[str], T],
    resumes: bool = False,
) -> T:
    """Return the stored output of a stage for these inputs. If there is none, call `compute` and
    store its result.

    `inputs` is JSON-serializable and contains everything that the output depends on, including the
    code (`code_files.code_sha256`). Several processes may compute a stage at the same time: all
    return the first stored result, and none changes its files. So `compute` receives the URI of a
    new folder for its files, in `<task_uri>/stages/<name>-<fingerprint>`; if it fails or is
    interrupted, the new folder is deleted. If it `resumes` after an interruption, it receives the
    folder of the stage instead, where other processes may write too. It must then give the files of
    its result new names (`new_name`), or the same content in every process.
    """
    adapter = TypeAdapter(output)
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    folder = TaskPaths(task_uri).stage(name, hashlib.sha256(text.encode()).hexdigest()[:16])
    done_uri = f"{folder}/done.json"

    def stored() -> _Done:
        return _Done.model_validate_json(read_bytes(done_uri))

    if exists(done_uri):
        return adapter.validate_python(stored().value)
    uri = folder if resumes else f"{folder}/{new_name()}"
    try:
        value = compute(uri)
    except BaseException:
        if not resumes:
            with suppress(StorageError):  # the caller needs the error of `compute`
                delete_folder(uri)
        raise
    done = _Done(inputs=json.loads(text), value=adapter.dump_python(value, mode="json"))
    try:
        write_if_match(done_uri, json.dumps(done.model_dump(), allow_nan=False).encode(), etag=None)
    except PreconditionFailed:
        # Another process was faster, or the client repeated a successful write.
        first = stored()
        if first.value == done.value:
            return value
        if not resumes:
            delete_folder(uri)
        return adapter.validate_python(first.value)
    return value


def new_name() -> str:
    """Return a name that no other process uses."""
    return uuid.uuid4().hex[:12]
