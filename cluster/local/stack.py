"""Start and stop the embedded stack: an S3 server and a local Ray, managed by a supervisor
process."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from tailorbird import PROJECT_ROOT
from tailorbird.storage.stored_model import StoredModel

SUPERVISOR = "cluster.local.supervisor"
STATE_FILE = "stack.json"
LOG_FILE = "stack.log"
KEYS_FILE = "keys.json"
TOKEN_FILE = "ray_token"
LOCK_FILE = ".lock"
OWN_DASHBOARD = "TAILORBIRD_STACK_DASHBOARD"
"""Variable that marks the environment of a stack, with the only dashboard to which the stack's
token may be sent."""
SECRET_FIELDS = {"access_key", "secret_key", "token"}
"""Fields of StackState that commands do not print."""
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 45
POLL_S = 0.05


class StackError(ValueError):
    """A stack that does not start or stop. The message contains the reason."""


class StackState(StoredModel):
    """Addresses and credentials of a running stack. `started` detects a reused process id; see
    `started_after_boot`."""

    pid: int
    started: float
    server_pids: tuple[int, ...] = ()
    s3_endpoint: str
    access_key: str
    secret_key: str
    ray_address: str
    dashboard_url: str
    token: str
    token_path: str
    serve_port: int
    temp_dir: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables that a process needs to use the S3 server, Ray and Serve
        of this stack."""
        return {
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_path,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "TAILORBIRD_SERVE_URL": f"http://127.0.0.1:{self.serve_port}",
            OWN_DASHBOARD: self.dashboard_url,
        }


def up(folder: Path, *, num_cpus: int | None = None) -> StackState:
    """Start the stack of this folder, unless it runs, and wait until S3 and Ray are ready.

    Data and keys in the folder are reused. Only its owner can enter the folder. Raises StackError
    if others use the folder, and with the end of the stack's log if the stack does not start.
    """
    folder = folder.absolute()
    _make_private(folder)
    with _locked(folder):
        running = status(folder)
        if running is not None:
            return running
        _clear_remains(folder)
        command = [sys.executable, "-m", SUPERVISOR, str(folder), str(num_cpus or "")]
        with open(folder / LOG_FILE, "wb", opener=private) as log:
            child = subprocess.Popen(
                command,
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            return _wait_until_ready(folder, child)
        except BaseException:
            _end(child.pid)
            _clear_remains(folder)
            raise


def down(folder: Path) -> bool:
    """Stop the stack of this folder and keep its data; return True if one was running."""
    folder = folder.absolute()
    if not any((folder / name).exists() for name in (LOCK_FILE, STATE_FILE)):
        return False
    with _locked(folder):
        state = status(folder)
        if state is not None:
            _end(state.pid)
        _clear_remains(folder)
    return state is not None


def status(folder: Path) -> StackState | None:
    """Return the state of the running stack of this folder; None if no stack is running."""
    state = _read_state(folder.absolute())
    if state is not None and _is_alive(state):
        return state
    return None


def running_folders() -> list[Path]:
    """Return the folders of all running stacks of this user."""
    folders = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        command = process.info["cmdline"] or []
        uids = process.info["uids"]
        if command[1:3] == ["-m", SUPERVISOR] and uids is not None and uids.real == os.getuid():
            folders.append(Path(command[3]))
    return sorted(folders)


def _make_private(folder: Path) -> None:
    """Create the folder of a stack so that only its owner can enter it.

    An existing folder becomes private if it is empty or belongs to a stack. Raises StackError for
    another folder that other users can enter, for example /tmp.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise StackError(f"{folder} is not a folder; give a new folder for the stack") from None
        if folder.stat().st_mode & 0o077 == 0:
            return
        if any(folder.iterdir()) and not any(
            _belongs_to_this_user(folder / name) for name in (KEYS_FILE, LOCK_FILE)
        ):
            raise StackError(
                f"{folder} contains other files, and other users have access to it; the folder of "
                "a stack must be private. Give a new folder with --dir or TAILORBIRD_HOME"
            ) from None
        folder.chmod(0o700)


def _belongs_to_this_user(path: Path) -> bool:
    """Return True for a file of this user. Anyone can add files to a folder like /tmp."""
    return path.is_file() and not path.is_symlink() and path.stat().st_uid == os.geteuid()


def _read_state(folder: Path) -> StackState | None:
    path = folder / STATE_FILE
    try:
        return StackState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StackError(
            f"{path} is not a valid state of a stack ({error.error_count()} errors); delete the "
            "file"
        ) from None


def started_after_boot(process: psutil.Process) -> float:
    """Return when a process started, in seconds after the boot of the machine.

    Unlike the time of day, it does not change if the clock is set, for example when a suspended
    machine resumes.
    """
    return process.create_time() - psutil.boot_time()


def _is_alive(state: StackState) -> bool:
    try:
        process = psutil.Process(state.pid)
        return _runs(process) and abs(started_after_boot(process) - state.started) < 2
    except psutil.NoSuchProcess:
        return False


def _wait_until_ready(folder: Path, child: "subprocess.Popen[bytes]") -> StackState:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise StackError(
                f"the stack ended during its start (exit code {child.returncode}); {_log(folder)}"
            )
        state = status(folder)
        if state is not None:  # the supervisor writes it when S3 and Ray answer
            return state
        time.sleep(POLL_S)
    raise StackError(f"the stack was not ready after {START_TIMEOUT_S} s; {_log(folder)}")


def _log(folder: Path) -> str:
    """Return the last line of the stack's log, which contains the reason."""
    path = folder / LOG_FILE
    lines = path.read_text(errors="replace").strip().splitlines() or ["(empty)"]
    return f"its log {path} ends with: {lines[-1]}"


def family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; an empty list if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def await_end(processes: list[psutil.Process], *, timeout_s: float) -> None:
    """Wait until the processes have ended, and kill those that do not end in time."""
    deadline = time.monotonic() + timeout_s
    while remaining := [process for process in processes if _runs(process)]:
        if time.monotonic() > deadline:
            for process in remaining:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return
        time.sleep(POLL_S)


def _runs(process: psutil.Process) -> bool:
    """Return True if the process runs. A zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(pid: int) -> None:
    members = family(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    await_end(members, timeout_s=STOP_TIMEOUT_S)
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _clear_remains(folder: Path) -> None:
    """Remove the servers, the temporary folder and the state file of a killed stack."""
    state = _read_state(folder)
    if state is None:
        return
    for pid in state.server_pids:
        with suppress(psutil.NoSuchProcess):
            if any(state.temp_dir in argument for argument in psutil.Process(pid).cmdline()):
                _end(pid)
    shutil.rmtree(state.temp_dir, ignore_errors=True)
    (folder / STATE_FILE).unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock that allows only one process at a time to start or stop the stack of this
    folder."""
    with open(folder / LOCK_FILE, "w", opener=private) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def private(path: str, flags: int) -> int:
    """Open a file that, if it is new, only its owner can read."""
    return os.open(path, flags, mode=0o600)
