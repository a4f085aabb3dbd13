"""Start the server processes of the embedded stack."""

import ctypes
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

from cluster.local.stack import StackError

PR_SET_PDEATHSIG = 1

Process = subprocess.Popen[bytes]


def program(name: str) -> str:
    """Return the path of an installed program. Raise StackError if it is missing."""
    installed = Path(sysconfig.get_path("scripts")) / name
    path = str(installed) if installed.exists() else shutil.which(name)
    if path is None:
        command = "`pip install --editable '.[stack]'` in the project's folder"
        raise StackError(f"the program `{name}` is not installed; run {command}")
    return path


def start(command: list[str], *, cwd: Path) -> Process:
    """Start a server that ends when this process dies. Only its user can read the files that it
    creates."""
    at_start = end_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, preexec_fn=at_start, umask=0o077
    )


def end_with_parent() -> None:
    """Make the kernel send SIGTERM to this server when the supervisor dies, for example by
    SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
