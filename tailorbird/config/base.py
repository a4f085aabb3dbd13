"""What every section of a recipe shares."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

STORES = ("s3://", "file://")
SECRETS = (*STORES, "env://")
MODEL_STORES = (*STORES, "hf://", "pypi://")


class RecipeError(ValueError):
    """A recipe that cannot be read; the message names the field, its value and what is allowed."""


class ConfigSection(BaseModel):
    """Frozen, closed to unknown fields; a field's docstring is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def digest(value: BaseModel | dict[str, Any]) -> str:
    """Return the sha256 of a value's canonical JSON, in hex."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_scheme(uri: str, allowed: tuple[str, ...]) -> str:
    if not uri.startswith(allowed):
        raise ValueError(f"{uri!r} must begin with {' or '.join(allowed)}")
    return uri
