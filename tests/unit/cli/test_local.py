"""Commands for this machine."""

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from cluster.local.stack import STATE_FILE, StackState
from tailorbird.cli.app import app

SECRETS = {"access_key": "an-access-key", "secret_key": "a-secret-key", "token": "a-token"}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The folder of a stack whose process is this one."""
    state = StackState(
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        s3_endpoint="http://127.0.0.1:1",
        ray_address="127.0.0.1:2",
        dashboard_url="http://127.0.0.1:3",
        token_path="/tmp/a folder/token;id",
        serve_port=4,
        temp_dir="/tmp/tb-none",
        access_key=SECRETS["access_key"],
        secret_key=SECRETS["secret_key"],
        token=SECRETS["token"],
    )
    (tmp_path / STATE_FILE).write_text(state.model_dump_json())
    return str(tmp_path)


def _status(folder: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["stack", "status", "--dir", folder, *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_status_contains_the_secrets_only_on_request(folder: str) -> None:
    without = _status(folder) + _status(folder, "--json")
    assert [secret for secret in SECRETS.values() if secret in without] == []
    status = json.loads(_status(folder, "--json", "--secrets"))
    assert SECRETS.items() <= status.items()
    assert "export AWS_SECRET_ACCESS_KEY=a-secret-key" in _status(folder, "--export")


def test_a_shell_takes_the_exported_values_as_they_are(folder: str) -> None:
    script = _status(folder, "--export") + 'printf %s "$RAY_AUTH_TOKEN_PATH"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "/tmp/a folder/token;id"
