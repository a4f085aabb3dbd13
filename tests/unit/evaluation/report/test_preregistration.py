"""The request of a run: which changes of a recipe start a new run."""

from pathlib import Path
from typing import Any

import pytest

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.report.preregistration import PROTOCOL_FILE, evaluated_recipe, run_uri
from tailorbird.registry.champion import Champion, ChangeReason
from tests import build
from tests.unit.evaluation.simulated import Simulation, registration_of

ENDPOINT: dict[str, Any] = {
    "url": "https://host/v1",
    "model": "m",
    "price_input": 1,
    "price_output": 1,
}


def recipe(**endpoint: Any) -> Recipe:
    return build.recipe(evaluation={"endpoint": ENDPOINT | endpoint})


@pytest.mark.parametrize(
    ("field", "is_same_run"),
    [
        ({"max_spend": 9}, True),
        ({"max_concurrency": 1}, True),
        ({"timeout_s": 9}, True),
        ({"model": "n"}, False),
        ({"url": "https://other/v1"}, False),
        ({"price_input": 2}, False),
        ({"revision": "2"}, False),
    ],
)
def test_another_endpoint_starts_a_new_run_and_other_limits_resume_it(
    field: dict[str, Any], is_same_run: bool
) -> None:
    assert (evaluated_recipe(recipe(**field)) == evaluated_recipe(recipe())) is is_same_run


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
    other_request = run_uri(task_uri, "0" * 64, champion=champion)
    without_champion = run_uri(task_uri, registration.request_sha256, champion=None)
    without_both = run_uri(task_uri, "0" * 64, champion=None)
    assert len({run, other_request, without_champion, without_both}) == 4
