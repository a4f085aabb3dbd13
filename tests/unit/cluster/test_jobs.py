import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from ray.dashboard.modules.job.pydantic_models import JobDetails
from typer.testing import CliRunner, Result

from cluster.dashboard import request_dashboard
from cluster.jobs import Job, _job, follow
from tailorbird.cli.app import app
from tests.unit.cluster.dashboard import dashboard_of_a_job
from tests.unit.cluster.stand_in import serving

RECIPE = Path(__file__).parents[3] / "recipes" / "icd10_demo.yaml"


def job_details(**changes: Any) -> dict[str, Any]:
    """A job as Ray's REST API returns it."""
    return {
        "type": "SUBMISSION",
        "submission_id": "task-0123456789ab",
        "status": "RUNNING",
        "entrypoint": "python -m tailorbird run submitted_recipe.yaml",
        "message": "Job is currently running.",
        "metadata": {"recipe": "task"},
        "start_time": 1_700_000_000_500,
        "end_time": None,
        "driver_exit_code": None,
        "runtime_env": {"env_vars": {"HF_TOKEN": "hf_a-secret-of-a-user"}},
    } | changes


def job_of(**changes: Any) -> Job:
    return _job(JobDetails(**job_details(**changes)))


@pytest.mark.parametrize(
    ("status", "driver", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 7, 7),
        ("FAILED", -9, 137),  # the shell was killed
        ("FAILED", None, 1),  # Ray could not start the driver, or lost it
        ("FAILED", 0, 1),
        ("STOPPED", None, 143),
        ("STOPPED", 0, 143),
        ("RUNNING", None, None),
        ("PENDING", None, None),
    ],
)
def test_the_exit_code_of_a_job_is_that_of_its_driver(
    status: str, driver: int | None, expected: int | None
) -> None:
    assert job_of(status=status, driver_exit_code=driver).exit_code == expected


def test_environment_variables_of_a_job_are_not_shown() -> None:
    job = job_of()
    assert "hf_a-secret" not in json.dumps(job.to_dict()) + job.line() + repr(job)


def submit(*options: str) -> Result:
    return CliRunner().invoke(app, ["submit", str(RECIPE), *options])


def test_an_unreachable_dashboard_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # the option --address overrides it
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    done = submit("--address", "http://127.0.0.1:1")
    assert done.exit_code == 2
    assert "not reachable at http://127.0.0.1:1/" in done.stderr


def test_a_response_of_another_server_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    with serving(lambda *_: (200, b"<p>a page</p>")) as address:
        done = submit("--address", address)
    assert done.exit_code == 2
    assert "does not answer like Ray's dashboard" in done.stderr


def test_the_token_is_sent_with_each_request_even_if_netrc_has_an_entry_for_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login another password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ours")
    sent = []

    async def serve_job(request: web.Request) -> web.Response:
        sent.append(request.headers["Authorization"])
        return web.json_response(job_details(submission_id="some", status="SUCCEEDED"))

    async def serve_log(request: web.Request) -> web.Response:
        sent.append(request.headers["Authorization"])
        return web.json_response({"logs": "a line"})

    lines: list[str] = []
    with dashboard_of_a_job(job=serve_job, log=serve_log) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        follow("some", write=lines.append)
        assert len(sent) == 2
        request_dashboard("GET", "/api/jobs/some")
    assert sent == ["Bearer ours"] * 3
    assert lines == ["a line"]
