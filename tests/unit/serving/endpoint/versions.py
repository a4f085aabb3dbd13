"""Versions of an endpoint that is a small server of a test."""

from typing import Any

from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import ModelVersion, Prompting
from tests.endpoint_server import MODEL

KEY, VARIABLE = "sk-secret-of-the-endpoint", "TEST_ENDPOINT_KEY"
PROMPTING = Prompting(system="own", shots=(("user", "q"), ("assistant", "a")), max_new_tokens=8)


def endpoint_version(url: str, *, classes: tuple[str, ...] = (), **fields: Any) -> ModelVersion:
    """Return a version whose API key is in the environment variable `VARIABLE`; `fields` are those
    of `Endpoint`."""
    endpoint = {
        "url": url,
        "model": "m",
        "api_key": f"env://{VARIABLE}",
        "reported_model": MODEL,
    } | fields
    return ModelVersion(
        kind="endpoint_few_shot",
        classes=classes,
        base_model="s3://models/base",
        max_length=64,
        dtype="float32",
        code="s3://models/code.zip",
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        prompting=PROMPTING,
        endpoint=Endpoint(**endpoint),
        name="task",
        version="endpoint-few-shot-0",
        uri="s3://models/task/versions/endpoint-few-shot-0",
        digest="d" * 64,
    )
