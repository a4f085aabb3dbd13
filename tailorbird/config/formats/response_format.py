"""The format that an answer is constrained to, in recipes, requests and versions."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tailorbird.config.base import ConfigSection
from tailorbird.config.formats.json_schema import supported_schema

MAX_OPTIONS = 256
MAX_OPTION_CHARS = 256


class TextFormat(ConfigSection):
    type: Literal["text"]
    """Any text."""


class JsonObjectFormat(ConfigSection):
    type: Literal["json_object"]
    """Any JSON object."""


class NamedSchema(ConfigSection):
    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    name: str = Field(default="answer", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Name of the schema. Endpoints require it; it has no other effect."""
    description: str | None = None
    """Description of the schema, for endpoints."""
    strict: bool | None = None
    """Part of OpenAI's format. The schema is enforced in any case."""
    content: dict[str, Any] = Field(alias="schema")
    """JSON Schema of the answer."""


class JsonSchemaFormat(ConfigSection):
    type: Literal["json_schema"]
    """JSON that satisfies a schema."""
    json_schema: NamedSchema
    """The schema, with its name, as in OpenAI's API."""

    @model_validator(mode="after")
    def _is_supported(self) -> Self:
        supported_schema(self.json_schema.content)
        return self


class ChoiceFormat(ConfigSection):
    type: Literal["choice"]
    """One of several texts."""
    choice: Annotated[tuple[str, ...], Field(min_length=2, max_length=MAX_OPTIONS)]
    """The texts."""

    @field_validator("choice")
    @classmethod
    def _are_answers(cls, choice: tuple[str, ...]) -> tuple[str, ...]:
        for option in choice:
            if (
                not option
                or option != option.strip()
                or len(option) > MAX_OPTION_CHARS
                or not option.isprintable()
            ):
                raise ValueError(
                    f"{option[:40]!r} cannot be an answer: use 1 to {MAX_OPTION_CHARS} printable "
                    "characters without outer white space"
                )
        if len(set(choice)) < len(choice):
            raise ValueError("an option is listed twice; remove one")
        return choice


StructuredFormat = Annotated[
    JsonObjectFormat | JsonSchemaFormat | ChoiceFormat, Field(discriminator="type")
]
"""A format that constrains answers."""
ResponseFormat = Annotated[StructuredFormat | TextFormat, Field(discriminator="type")]
"""The format in a request."""


def openai_format(format: JsonObjectFormat | JsonSchemaFormat) -> dict[str, Any]:
    """Return the `response_format` of OpenAI's API, with the schema as it was given."""
    if isinstance(format, JsonObjectFormat):
        return {"type": format.type}
    schema = format.json_schema
    fields = {"name": schema.name, "description": schema.description, "strict": schema.strict}
    given = {name: value for name, value in fields.items() if value is not None}
    return {"type": format.type, "json_schema": given | {"schema": schema.content}}


def format_key(format: StructuredFormat) -> str:
    """Return the JSON of a format. The order of properties in a schema matters, because answers
    have the same order."""
    return json.dumps(format.model_dump(mode="json"), separators=(",", ":"))
