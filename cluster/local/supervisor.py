"""Supervisor process of the embedded stack: starts S3 and Ray, writes the state, and stops both on
SIGTERM."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import requests

from cluster.bearer_auth import bearer
from cluster.local import ports
from cluster.local.processes import Process, program, start
from cluster.local.ray_env import Keys, environment, stack_keys, write_private
from cluster.local.stack import (
    POLL_S,
    STATE_FILE,
    StackError,
    StackState,
    await_end,
    family,
    started_after_boot,
)

SERVER_START_TIMEOUT_S = 120
SERVER_STOP_TIMEOUT_S = 30
MAX_RAY_STARTS = 3
WATCH_S = 1.0
OBJECT_STORE_BYTES = 1 << 30


def main(folder: Path, num_cpus: int | None) -> None:
    """Run the stack of `folder` until SIGTERM or SIGINT, or until its S3 server or Ray ends."""
    # Imported here, because `benchmarks.gpu` uses `start_ray` on a machine without `cryptography`.
    from cluster.local.s3_server import require_closed, s3_answers, start_s3

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    keys = stack_keys(folder)
    base, claim = ports.claim_ports()
    # The paths of Ray's sockets must be shorter than 108 bytes, so the temporary folder has a short
    # name.
    temp_dir = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
    os.environ.update(environment(base, folder=folder, temp_dir=temp_dir, keys=keys))
    for name in (
        "RAY_ADDRESS",
        "RAY_AUTH_TOKEN",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL_S3",
    ):
        os.environ.pop(name, None)
    servers: dict[str, Process] = {}
    try:
        servers["S3"] = start_s3(folder, base=base, temp_dir=temp_dir)
        start_server = partial(start_ray, base, temp_dir=temp_dir, num_cpus=num_cpus)
        servers["Ray"] = start_server()
        wait_for_ray(
            lambda: ray_answers(base, keys=keys),
            start=start_server,
            servers=servers,
            stopping=stopping,
        )
        _wait_until(
            "S3",
            lambda: s3_answers(base, pid=servers["S3"].pid),
            servers=servers,
            stopping=stopping,
        )
        require_closed(base, pid=servers["S3"].pid)
        write_private(
            folder / STATE_FILE, _state(base, keys=keys, servers=servers, temp_dir=temp_dir)
        )
        while not stopping.wait(WATCH_S):
            _require_alive(servers)
    finally:
        stop_servers(list(servers.values()))
        shutil.rmtree(temp_dir, ignore_errors=True)
        (folder / STATE_FILE).unlink(missing_ok=True)
        claim.close()


def wait_for_ray(
    ready: Callable[[], bool],
    *,
    start: Callable[[], Process],
    servers: dict[str, Process],
    stopping: threading.Event,
) -> None:
    """Wait until Ray is ready. Start it again if it ends, which it does after 30 s of its own start
    on a busy machine.

    Raises StackError if it ended MAX_RAY_STARTS times, or was not ready in time, or if another
    server ended.
    """
    for number in range(1, MAX_RAY_STARTS + 1):
        try:
            _wait_until("Ray", ready, servers=servers, stopping=stopping)
            return
        except StackError:
            if stopping.is_set() or servers["Ray"].poll() is None or number == MAX_RAY_STARTS:
                raise
        servers["Ray"] = start()


def _wait_until(
    name: str, ready: Callable[[], bool], *, servers: dict[str, Process], stopping: threading.Event
) -> None:
    deadline = time.monotonic() + SERVER_START_TIMEOUT_S
    while not ready():
        _require_alive(servers)
        if stopping.wait(POLL_S):
            raise StackError("the stack was stopped during its start")
        if time.monotonic() > deadline:
            raise StackError(f"{name} was not ready after {SERVER_START_TIMEOUT_S} s")


def _require_alive(servers: dict[str, Process]) -> None:
    for name, server in servers.items():
        if server.poll() is not None:
            raise StackError(f"{name} ended with exit code {server.returncode}")


def stop_servers(servers: list[Process]) -> None:
    """Stop the servers concurrently, and kill processes that remain after a timeout."""
    members = []
    for server in servers:
        members += family(server.pid)  # before the server ends
    for server in servers:
        server.terminate()
    await_end(members, timeout_s=SERVER_STOP_TIMEOUT_S)


def start_ray(base: int, *, temp_dir: Path, num_cpus: int | None) -> Process:
    """Start a Ray head with its command line, since `ray.init` cannot set the port of the dashboard
    agent."""
    command = [
        program("ray"),
        "start",
        "--head",
        "--block",
        "--dashboard-host=127.0.0.1",
        "--disable-usage-stats",
        *(f"--{name}={base + offset}" for name, offset in ports.RAY_START.items()),
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--temp-dir={temp_dir}/ray",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        # One more CPU than cores, so that a mostly idle service does not prevent training from
        # starting.
        f"--num-cpus={num_cpus or (os.cpu_count() or 1) + 1}",
    ]
    return start(command, cwd=temp_dir)


def ray_answers(base: int, *, keys: Keys) -> bool:
    """Return True if GCS, node manager and dashboard agent listen and the dashboard accepts the
    token."""
    needed = (ports.GCS, ports.NODE_MANAGER, ports.AGENT, ports.DASHBOARD)
    listening = ports.listening_ports(psutil.net_connections("tcp"))
    if not {base + offset for offset in needed} <= listening:
        return False
    token = keys.token_path.read_text()
    try:
        return requests.get(
            f"http://127.0.0.1:{base + ports.DASHBOARD}/api/version", auth=bearer(token), timeout=5
        ).ok
    except requests.RequestException:
        return False


def _state(base: int, *, keys: Keys, servers: dict[str, Process], temp_dir: Path) -> str:
    state = StackState(
        pid=os.getpid(),
        started=started_after_boot(psutil.Process()),
        server_pids=tuple(server.pid for server in servers.values()),
        s3_endpoint=f"http://127.0.0.1:{base + ports.S3}",
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        ray_address=f"127.0.0.1:{base + ports.GCS}",
        dashboard_url=f"http://127.0.0.1:{base + ports.DASHBOARD}",
        token=keys.token_path.read_text(),
        token_path=str(keys.token_path),
        serve_port=base + ports.SERVE,
        temp_dir=str(temp_dir),
    )
    return state.model_dump_json(indent=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2] else None)
