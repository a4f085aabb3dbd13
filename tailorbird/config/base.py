"""Base class and helpers of the recipe's sections."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

STORES = ("s3://", "file://")
SECRETS = (*STORES, "env://")
SECRET = "secret"  # type of a validation error whose input must not be shown


class RecipeError(ValueError):
    """A recipe that cannot be read. The message names the field, its value and the allowed
    values."""


class ConfigSection(BaseModel):
    """A frozen section that rejects unknown fields. The docstring of a field is its description in
    the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def digest(value: BaseModel | dict[str, Any]) -> str:
    """Return the sha256 of the canonical JSON of a value, in hex."""
    if isinstance(value, BaseModel):
        plain = value.model_dump(mode="json")
    else:
        plain = value
    return hashlib.sha256(
        json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def with_scheme(uri: str, allowed: tuple[str, ...]) -> str:
    """Return the URI; raise ValueError if its scheme is not allowed."""
    if not uri.startswith(allowed):
        raise ValueError(f"{uri!r} must start with {' or '.join(allowed)}")
    return uri
