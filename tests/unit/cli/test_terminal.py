"""Output of the command to a terminal, to a pipe and with NO_COLOR."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tailorbird import __version__

COMMAND = (sys.executable, "-m", "tailorbird")
COLOR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
"""A control sequence that sets the foreground color."""


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


def on_a_terminal(*arguments: str, **variables: str) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")
    }
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100"} | variables
    parent, child = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdin=child, stdout=child, stderr=child
    ):
        os.close(child)
        chunks = []
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # Linux reports the end of a terminal as an error
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(parent)
    return b"".join(chunks).decode()


def test_version_prints_only_the_version() -> None:
    done = piped("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tailorbird {__version__}\n", "")


def test_help_is_colored_on_a_terminal_but_not_with_no_color() -> None:
    assert COLOR.search(on_a_terminal("--help"))
    assert not COLOR.search(on_a_terminal("--help", NO_COLOR="1"))


def test_output_to_a_pipe_has_no_control_sequences() -> None:
    for done in (piped("--help"), piped("run", "no-such-recipe.yaml"), piped("run")):
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("bash", {"COMP_WORDS": "tailorbird re", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "tailorbird re"}),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "tailorbird re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        ),
    ],
)
def test_shells_complete_commands(shell: str, variables: dict[str, str]) -> None:
    command = Path(sys.executable).with_name("tailorbird")
    environment = os.environ | variables | {"_TAILORBIRD_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([command], env=environment, capture_output=True, text=True, check=False)
    assert "render" in done.stdout
    assert "rollback" not in done.stdout
