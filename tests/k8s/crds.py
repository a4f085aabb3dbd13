"""KubeRay's schemas without unknown fields, like `kubectl apply --validate=strict`."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


def needs_crds() -> Path:
    """Return the folder TAILORBIRD_CRDS; skip the test if the variable is not set."""
    folder = os.environ.get("TAILORBIRD_CRDS")
    if not folder:
        pytest.skip(
            "TAILORBIRD_CRDS (folder with KubeRay's CustomResourceDefinitions, ray.io_*.yaml) is "
            "not set"
        )
    return Path(folder)


@cache
def validator(folder: Path, kind: str) -> jsonschema.protocols.Validator:
    """Return a validator of documents of this kind, version v1."""
    with (folder / f"ray.io_{FILES[kind]}.yaml").open() as stream:
        crd = yaml.load(stream, Loader=yaml.CSafeLoader)
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """Return the schema as strict JSON Schema: no unknown fields, and fields with defaults are not
    required."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key != "format"
    }
    if "properties" in schema:
        properties = schema["properties"]
        strict["properties"] = {name: _strict(value) for name, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
        required = schema.get("required", [])
        strict["required"] = [
            name for name in required if "default" not in properties.get(name, {})
        ]
    elif isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = _strict(schema["items"])
    return strict
