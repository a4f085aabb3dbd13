"""KubeRay's schemas made strict: what they do not know is refused, as `kubectl apply --validate=strict` does."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


def needs_crds() -> Path:
    """The folder that TAILORBIRD_CRDS names; the test is skipped without."""
    folder = os.environ.get("TAILORBIRD_CRDS")
    if not folder:
        pytest.skip("TAILORBIRD_CRDS names no folder with KubeRay's CustomResourceDefinitions (ray.io_*.yaml)")
    return Path(folder)


@cache
def validator(folder: Path, kind: str) -> jsonschema.protocols.Validator:
    """Of documents of the kind, version v1."""
    with (folder / f"ray.io_{FILES[kind]}.yaml").open() as stream:
        crd = yaml.load(stream, Loader=yaml.CSafeLoader)
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """The schema as JSON Schema has it: closed, `int-or-string` as both, and defaults not required."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-") and key != "format"}
    if "properties" in schema:
        properties = schema["properties"]
        strict["properties"] = {name: _strict(value) for name, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
        required = schema.get("required", [])
        strict["required"] = [name for name in required if "default" not in properties.get(name, {})]
    elif isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = _strict(schema["items"])
    return strict
