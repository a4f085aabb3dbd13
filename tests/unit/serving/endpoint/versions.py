"""Versions of an endpoint that is a small server of a test."""

from typing import Any

from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import ModelVersion, Prompting
from tests.build import version
from tests.endpoint_server import MODEL

KEY = "sk-secret-of-the-endpoint"
VARIABLE = "TEST_ENDPOINT_KEY"
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
    return version(
        "endpoint-few-shot-0",
        kind="endpoint_few_shot",
        classes=classes,
        prompting=PROMPTING,
        endpoint=Endpoint(**endpoint),
    )
