"""Output of the command to a terminal, to a pipe and with NO_COLOR."""

import os
import subprocess
import sys

from tailorbird import __version__

COMMAND = (sys.executable, "-m", "tailorbird")


def piped(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")
    }
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_prints_only_the_version() -> None:
    done = piped("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tailorbird {__version__}\n", "")


def test_output_to_a_pipe_has_no_control_sequences() -> None:
    for done in (piped("--help"), piped("run", "no-such-recipe.yaml"), piped("run")):
        assert "\x1b" not in done.stdout + done.stderr
