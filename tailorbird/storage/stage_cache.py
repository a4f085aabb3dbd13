"""Stages that are done once: a stage's value lies on S3 under the hash of what went into it."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from tailorbird.storage.objects import exists, read_json, write_json


def once(task_uri: str, name: str, *, inputs: dict[str, Any], compute: Callable[[str], Any]) -> Any:
    """The stage's value as plain JSON: found by its inputs, or else computed and kept.

    `compute` gets the URI of the stage's folder, `<home>/stages/<name>-<hash>`, for files of its own. `done.json` in it
    is written last, so a stage that was interrupted is computed again.
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    uri = f"{task_uri}/stages/{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if exists(f"{uri}/done.json"):
        return read_json(f"{uri}/done.json")["value"]
    value = compute(uri)
    write_json(f"{uri}/done.json", {"inputs": inputs, "value": value})
    return value
