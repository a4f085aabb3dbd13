"""`ray job submit` on the running cluster does what the command line does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import storage
from models.registry import list_versions
from tests.integration.small import REGISTRY, ROOT, recipe_file

RAY = Path(sys.executable).parent / "ray"
TINY = ("data.max_train_rows=64", "tuning.num_trials=1", "tuning.space={}", "training.batch_size=16")


@pytest.mark.slow
def test_a_submitted_job_goes_the_whole_way(small_data: str, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, name="by-job", data=small_data)
    command = [str(RAY), "job", "submit", "--working-dir", str(ROOT), "--runtime-env-json"]
    command += ['{"excludes": [".venv", ".git", ".tailorbird", "shared"]}', "--"]
    command += [sys.executable, "-m", "tailorbird", "run", str(recipe), *TINY, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    home = f"{REGISTRY}/by-job"
    versions = list_versions(home)
    assert len(versions) >= 1
    evidence = storage.read_json(f"{versions[-1].uri}/evidence.json")
    assert evidence["verdict"]["n"] == 400
    assert storage.exists(f"{evidence['run']}/report.html")
