"""Commands for this machine."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from cluster.local.stack import STATE_FILE, StackState, started_after_boot
from tailorbird.cli.app import app

SECRETS = {"access_key": "an-access-key", "secret_key": "a-secret-key", "token": "a-token"}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The folder of a stack whose process is this one."""
    state = StackState(
        pid=os.getpid(),
        started=started_after_boot(psutil.Process()),
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


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_status_contains_no_secret(folder: str, options: list[str]) -> None:
    output = _status(folder, *options)
    assert "127.0.0.1:1" in output
    assert [secret for secret in SECRETS.values() if secret in output] == []


def test_the_exported_environment_contains_the_keys(folder: str) -> None:
    assert "export AWS_SECRET_ACCESS_KEY=a-secret-key" in _status(folder, "--export")


def test_a_shell_takes_the_exported_values_as_they_are(folder: str) -> None:
    script = _status(folder, "--export") + 'printf %s "$RAY_AUTH_TOKEN_PATH"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "/tmp/a folder/token;id"
