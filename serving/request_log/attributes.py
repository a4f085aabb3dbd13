"""Attributes of a text or a conversation, by which `watch` groups the request log."""

from typing import Annotated

from pydantic import AfterValidator, Field, StrictStr

MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARS = 256
MAX_ATTRIBUTES_BYTES = 2048  # of one object; the request log stores it with each text of a request
LIMITS = (
    f"an object has at most {MAX_ATTRIBUTES} attributes, whose names and values have at most "
    f"{MAX_ATTRIBUTE_CHARS} characters and together {MAX_ATTRIBUTES_BYTES} bytes"
)


def _require_small(attributes: dict[str, str]) -> dict[str, str]:
    if (
        sum(len(name.encode()) + len(value.encode()) for name, value in attributes.items())
        > MAX_ATTRIBUTES_BYTES
    ):
        raise ValueError(LIMITS)
    return attributes


Attribute = Annotated[StrictStr, Field(max_length=MAX_ATTRIBUTE_CHARS)]
Attributes = Annotated[
    dict[Attribute, Attribute], Field(max_length=MAX_ATTRIBUTES), AfterValidator(_require_small)
]
"""Attributes by name."""
