"""Runs that Ray's command line submits as jobs."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import requests

from cluster.auth import read_token
from cluster.local.stack import StackState
from tailorbird import storage
from tailorbird.registry.versions import list_versions
from tests.integration.small import REGISTRY, ROOT, recipe_file

RAY_JOB = (str(Path(sys.executable).parent / "ray"), "job")
TINY = (
    "data.max_train_rows=64",
    "tuning.num_trials=1",
    "tuning.space={}",
    "training.batch_size=16",
)


def submit(name: str, recipe: Path) -> subprocess.CompletedProcess[str]:
    """Run the recipe as a job with this id, with the command of the guide."""
    command = ["submit", "--submission-id", name, "--working-dir", str(ROOT), "--"]
    return ray_job(*command, "tailorbird", "run", str(recipe), *TINY, "--json")


def ray_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RAY_JOB, *arguments],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.long
def test_a_job_that_is_submitted_twice_is_one_run(
    stack: StackState, small_data: str, tmp_path: Path
) -> None:
    recipe = recipe_file(tmp_path, name="by-job", data=small_data)
    name = f"by-job-{uuid.uuid4().hex[:12]}"
    done = submit(name, recipe)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    task_uri = f"{REGISTRY}/by-job"
    versions = list_versions(task_uri)[0]
    evidence = storage.read_json(f"{versions[-1].uri}/evidence.json")
    assert evidence["verdict"]["n"] == 400
    assert storage.exists(f"{evidence['run']}/report.html")
    assert json.dumps(evidence["run"]) in done.stdout

    repeated = submit(name, recipe)
    assert repeated.returncode != 0
    assert "already exists" in repeated.stdout + repeated.stderr
    resumed = submit(f"{name}-2", recipe)
    assert resumed.returncode == 0, resumed.stdout[-4000:] + resumed.stderr[-2000:]
    assert f"this run is already finished: {evidence['run']}" in resumed.stdout
    assert len(list_versions(task_uri)[0]) == len(versions)

    headers = {"Authorization": f"Bearer {read_token()}"}
    listing = requests.get(f"{stack.dashboard_url}/api/jobs/", headers=headers, timeout=60).text
    assert name in listing
    log = ray_job("logs", name).stdout
    for secret in (stack.secret_key, stack.token):
        assert secret not in listing + done.stdout + done.stderr + log
