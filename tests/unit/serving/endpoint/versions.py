"""Versions of an endpoint that is a small server of a test."""

from pathlib import Path
from typing import Any

from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    VersionConfig,
    register,
    write_config,
)
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


def endpoint_of(
    version: ModelVersion, prompting: Prompting, *, endpoint: Endpoint
) -> VersionConfig:
    """Return the configuration of a version of an endpoint with the other fields of `version`."""
    fields = version.model_dump(include=set(VersionConfig.model_fields))
    kind = {"kind": "endpoint_zero_shot", "prompting": prompting, "endpoint": endpoint}
    return VersionConfig(**fields | kind)


def register_config(folder: Path, name: str, config: VersionConfig) -> ModelVersion:
    """Register a version without weights."""
    (folder / name).mkdir()
    write_config(folder / name, config)
    return register((folder / "registry" / "task").as_uri(), folder / name)
