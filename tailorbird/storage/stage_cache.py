"""Cache of stages on S3. The output of a stage is stored under a fingerprint of its inputs."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TypeVar

from pydantic import JsonValue, TypeAdapter

from tailorbird.storage.objects import exists, read_bytes, write_bytes
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel

T = TypeVar("T")


class _Done(StoredModel):
    """Content of `done.json`, which is written last, so that an interrupted stage is computed again."""

    inputs: dict[str, JsonValue]
    value: JsonValue


def cached_stage(
    task_uri: str, name: str, *, output: type[T], inputs: Mapping[str, object], compute: Callable[[str], T]
) -> T:
    """Return the stored output of a stage for these inputs. If there is none, call `compute` and store its result.

    `inputs` is JSON-serializable and contains everything that the output depends on, including the code
    (`code_closure.code_sha256`). `compute` receives the URI of the stage's folder,
    `<task_uri>/stages/<name>-<fingerprint>`, where it can store files.
    """
    adapter = TypeAdapter(output)
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    folder = TaskPaths(task_uri).stage(name, hashlib.sha256(text.encode()).hexdigest()[:16])
    if exists(f"{folder}/done.json"):
        return adapter.validate_python(_Done.model_validate_json(read_bytes(f"{folder}/done.json")).value)
    value = compute(folder)
    done = _Done(inputs=json.loads(text), value=adapter.dump_python(value, mode="json"))
    write_bytes(f"{folder}/done.json", json.dumps(done.model_dump(), allow_nan=False).encode())
    return value
