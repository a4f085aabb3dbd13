"""Commands for this machine."""

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tailorbird.cli.app import app
from tests.unit.cluster.stack_states import write_state


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The folder of a stack whose process is this one."""
    write_state(tmp_path, token_path="/tmp/a folder/token;id")
    return str(tmp_path)


def _status(folder: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["stack", "status", "--dir", folder, *options])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_status_contains_no_secret(folder: str, options: list[str]) -> None:
    output = _status(folder, *options)
    assert "127.0.0.1:1" in output
    assert not any(secret in output for secret in ("an-access-key", "a-secret-key", "a-token"))


def test_a_shell_takes_the_exported_values_as_they_are(folder: str) -> None:
    script = (
        _status(folder, "--export") + 'printf "%s %s" $AWS_SECRET_ACCESS_KEY "$RAY_AUTH_TOKEN_PATH"'
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "a-secret-key /tmp/a folder/token;id"
