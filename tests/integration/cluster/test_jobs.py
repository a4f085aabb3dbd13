"""Submission of jobs to a running cluster: logs, exit codes, repeated submissions, and errors."""

import io
import json
import os
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from typer.testing import CliRunner

from cluster import jobs
from cluster.auth import SessionError, read_token
from cluster.job_package import LIMIT_BYTES, RECIPE_FILE, pack
from cluster.local.stack import OWN_DASHBOARD, StackState
from tailorbird import storage
from tailorbird.cli.app import app
from tailorbird.config.base import digest
from tailorbird.config.loader import load_recipe
from tailorbird.registry.versions import list_versions
from tailorbird.storage.code_files import code_sha256, runtime_files
from tests.integration.small import REGISTRY, ROOT, recipe_file
from tests.integration.training.relay import TcpProxy

RAY = str(Path(sys.executable).parent / "ray")
TINY = (
    "data.max_train_rows=64",
    "tuning.num_trials=1",
    "tuning.space={}",
    "training.batch_size=16",
)
LINES = [f"line {number}" for number in range(1, 7)]
PRINT_LINES_AND_EXIT_7 = "for number in 1 2 3 4 5 6; do echo line $number; sleep 0.5; done; exit 7"
PRINT_HASHES_OF_PACKAGE = (
    "python -c 'from pathlib import Path; from tailorbird.storage.code_files import code_sha256, runtime_files; "
    "from tailorbird.config.base import digest; from tailorbird.config.loader import load_recipe; "
    f'print(digest(load_recipe("{RECIPE_FILE}")), code_sha256(runtime_files(Path.cwd())))\''
)


@pytest.fixture
def name(stack: StackState) -> Iterator[str]:
    """Yield a unique job name; stop its jobs at the end."""
    assert stack.dashboard_url
    name = f"task-{uuid.uuid4().hex[:12]}"
    yield name
    for job in jobs._list(jobs._client()):
        if job.id.startswith(name) and not job.is_over:
            _run(RAY, "job", "stop", job.id)


@pytest.fixture(scope="module")
def package() -> bytes:
    """Return a package of the project with the recipe of the demo."""
    return pack(ROOT, recipe=load_recipe(ROOT / "recipes" / "icd10_demo.yaml"))


def _log(job_id: str) -> str:
    """Return the log of a job when it has ended."""
    written: list[str] = []
    jobs.follow(job_id, write=written.append)
    return "".join(written)


@pytest.mark.long
def test_following_a_job_survives_an_outage_of_the_dashboard_and_returns_its_exit_code(
    stack: StackState, name: str, package: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = jobs.start(name, entrypoint=PRINT_LINES_AND_EXIT_7, package=package)
    assert started.how == "started"
    relay, output = TcpProxy(int(stack.dashboard_url.rsplit(":", 1)[1])), []

    def append(text: str) -> None:
        output.append(text)
        if "line 2" in text:
            relay.cut()
            threading.Timer(2.0, relay.open).start()

    with monkeypatch.context() as patched:
        # The client sends the stack's token only to the address in both variables.
        for variable in ("RAY_API_SERVER_ADDRESS", OWN_DASHBOARD):
            patched.setenv(variable, f"http://127.0.0.1:{relay.port}")
        job = jobs.follow(name, write=append)
    relay.cut()
    assert (job.status, job.exit_code) == ("FAILED", 7)
    assert [line for line in "".join(output).splitlines() if line in LINES] == LINES

    again = jobs.start(name, entrypoint="true", package=package)
    assert (again.how, again.job.id) == ("started again", f"{name}-2")
    assert "line 6" in _run(RAY, "job", "logs", name).stdout
    assert jobs.follow(again.job.id, write=str).exit_code == 0


@pytest.mark.long
def test_a_job_continues_without_followers_and_a_stopped_job_has_a_nonzero_exit_code(
    stack: StackState, name: str, package: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.start(name, entrypoint="echo begun; sleep 300", package=package)
    relay = TcpProxy(int(stack.dashboard_url.rsplit(":", 1)[1]))
    with monkeypatch.context() as patched:
        # The client sends the stack's token only to the address in both variables.
        for variable in ("RAY_API_SERVER_ADDRESS", OWN_DASHBOARD):
            patched.setenv(variable, f"http://127.0.0.1:{relay.port}")
        with pytest.raises(SessionError, match="not reachable"):
            jobs.follow(
                name, write=lambda text: relay.cut() if "begun" in text else None, max_outage_s=0.5
            )
    assert "RUNNING" in _run(RAY, "job", "status", name).stdout
    assert jobs.start(name, entrypoint="true", package=package).how == "running"

    _run(RAY, "job", "stop", name)
    job = jobs.follow(name, write=str)
    assert (job.status, job.exit_code) == ("STOPPED", 143)
    assert jobs.start(name, entrypoint="true", package=package).how == "started again"


def test_concurrent_submissions_start_one_job_and_a_successful_job_is_not_repeated(
    name: str, package: bytes, tmp_path: Path
) -> None:
    def submit(_: int) -> jobs.Submitted:
        resources = jobs.driver_resources(0.5)
        return jobs.start(
            name, entrypoint=PRINT_HASHES_OF_PACKAGE, package=package, resources=resources
        )

    with ThreadPoolExecutor(2) as pool:
        submissions = list(pool.map(submit, range(2)))
    assert sorted(submission.how for submission in submissions) == ["running", "started"]
    assert {submission.job.id for submission in submissions} == {name}
    assert jobs.follow(name, write=str).exit_code == 0
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        archive.extractall(tmp_path)
    recipe = load_recipe(ROOT / "recipes" / "icd10_demo.yaml")
    assert f"{digest(recipe)} {code_sha256(runtime_files(tmp_path))}" in _log(name).splitlines()

    assert submit(0).how == "done"
    second = jobs.start(name, entrypoint="true", package=package, again=True)
    assert second.job.id == f"{name}-2"


@pytest.mark.usefixtures("stack")
def test_the_log_of_a_driver_that_fails_is_kept_in_the_registry(name: str, package: bytes) -> None:
    """Ray deletes it with the cluster."""
    entrypoint = (
        f"{jobs.ENTRYPOINT} name={name} registry={REGISTRY} data.train=s3://lake/no-such-data"
    )
    jobs.start(name, entrypoint=entrypoint, package=package, resources=jobs.driver_resources(0.5))
    assert jobs.follow(name, write=str).exit_code == 2
    (log,) = storage.list_files(f"{REGISTRY}/{name}/logs")
    kept = storage.read_bytes(log).decode()
    assert "s3://lake/no-such-data" in kept
    assert kept.endswith("\nexit code 2\n")
    assert f"the log is kept at {log}" in _log(name)


def test_the_limit_of_a_package_equals_rays(name: str) -> None:
    assert LIMIT_BYTES == DASHBOARD_CLIENT_MAX_SIZE
    with pytest.raises(jobs.JobError, match="413"):
        jobs.start(name, entrypoint="true", package=bytes(LIMIT_BYTES + 1))


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(
    ("token", "message"),
    [("wrong", "refuses the token"), ("", "requires a token, but none is set")],
)
def test_without_a_valid_token_submit_names_the_variable_to_set(
    token: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    done = CliRunner().invoke(app, ["submit", str(ROOT / "recipes" / "icd10_demo.yaml")])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


@pytest.mark.long
def test_a_submitted_job_runs_the_pipeline_and_a_job_submitted_by_rays_cli_reuses_its_run(
    stack: StackState, small_data: str, tmp_path: Path
) -> None:
    recipe = recipe_file(tmp_path, name="by-job", data=small_data)
    done = _run(
        sys.executable, "-m", "tailorbird", "submit", str(recipe), *TINY, "--follow", "--json"
    )
    task_uri = f"{REGISTRY}/by-job"
    versions = list_versions(task_uri)[0]
    assert len(versions) >= 1
    evidence = storage.read_json(f"{versions[-1].uri}/evidence.json")
    assert evidence["verdict"]["n"] == 400
    assert storage.exists(f"{evidence['run']}/report.html")
    status = json.loads(done.stdout)
    assert (status["status"], status["how"], status["exit_code"]) == ("SUCCEEDED", "started", 0)
    assert f"tailorbird report {evidence['run']} --open" in done.stderr  # the log of the job

    repeated = _run(sys.executable, "-m", "tailorbird", "submit", str(recipe), *TINY, "--json")
    assert (json.loads(repeated.stdout)["how"], json.loads(repeated.stdout)["id"]) == (
        "done",
        status["id"],
    )
    listing = requests.get(
        f"{stack.dashboard_url}/api/jobs/",
        headers={"Authorization": f"Bearer {read_token()}"},
        timeout=60,
    ).text
    assert status["id"] in listing
    for secret in (stack.secret_key, stack.token):
        assert secret not in listing + done.stderr + done.stdout + _log(status["id"])

    command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--runtime-env-json"]
    command += ['{"excludes": [".venv", ".git", ".tailorbird", "shared"]}', "--"]
    by_ray = _run(*command, sys.executable, "-m", "tailorbird", "run", str(recipe), *TINY, "--json")
    assert f'"run": "{evidence["run"]}"' in by_ray.stdout
    assert len(list_versions(task_uri)[0]) == len(versions)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done
