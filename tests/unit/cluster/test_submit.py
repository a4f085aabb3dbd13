"""What `submit` sends to a dashboard; the dashboard is a stand-in that records requests, and has no
Ray."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobSubmitRequest

from cluster import jobs
from cluster.jobs import JobError
from tailorbird import PACKAGES
from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tests.unit.cluster.stand_in import serving

RECIPES = Path(__file__).parents[3] / "recipes"


class Dashboard:
    """A dashboard of Ray `version` that accepts every job."""

    version = "2.60.1"

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.jobs: dict[str, dict[str, Any]] = {}

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        path = request.path.removeprefix("/api/")
        self.requests.append(f"{request.command} {path.partition('/')[0]}")
        if request.command == "POST":
            job = json.loads(body)
            name = job["submission_id"]
            self.jobs[name] = job
            return 200, json.dumps({"job_id": name, "submission_id": name}).encode()
        answers: dict[str, Any] = {"version": {"ray_version": self.version}, "jobs/": []}
        answers |= {f"jobs/{name}": _details(name) for name in self.jobs}
        missing = request.command == "GET" and path not in answers
        return 404 if missing else 200, json.dumps(answers.get(path)).encode()


def _details(name: str) -> dict[str, Any]:
    empty = dict.fromkeys(("message", "metadata", "start_time", "end_time", "driver_exit_code"))
    return {
        "type": "SUBMISSION",
        "submission_id": name,
        "status": "PENDING",
        "entrypoint": "",
        **empty,
    }


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    dashboard = Dashboard()
    with serving(dashboard.answer) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        yield dashboard


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    project = '[project]\nrequires-python = ">=3.11"\ndependencies = ["ray[serve]>=2.60,<2.61"]\n'
    (tmp_path / "pyproject.toml").write_text(f"{project}[project.optional-dependencies]\n")
    return tmp_path


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPES / "icd10_demo.yaml")


def test_a_driver_runs_on_the_head_reserves_its_memory_and_keeps_its_log(
    dashboard: Dashboard, root: Path, recipe: Recipe
) -> None:
    assert jobs.submit(recipe, root=root, driver_memory_gib=1.5).how == "started"
    (body,) = dashboard.jobs.values()
    JobSubmitRequest(**body)  # Ray's own check of names and types
    assert body["entrypoint_memory"] == 1.5 * 2**30
    assert body["entrypoint_resources"] == {"node:__internal_head__": 0.001}
    assert body["entrypoint"].endswith(" --keep-log")


@pytest.mark.parametrize("version", ["2.59.0", "2.61.0"])
def test_another_version_of_ray_is_refused_before_the_upload(
    version: str, dashboard: Dashboard, root: Path, recipe: Recipe
) -> None:
    dashboard.version = version
    with pytest.raises(
        JobError, match=rf"has Ray {version}, but the code in .* requires ray>=2\.60,<2\.61"
    ):
        jobs.submit(recipe, root=root)
    assert set(dashboard.requests) == {"GET version"}


@pytest.mark.usefixtures("dashboard")
def test_an_unknown_job_is_an_error_that_lists_the_submitted_jobs() -> None:
    with pytest.raises(JobError, match=r"no job 'none-such' was submitted .* existing jobs: none"):
        jobs.follow("none-such", write=str)
