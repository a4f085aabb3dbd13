"""Several Ray nodes on one machine: each is a `ray start` process with its own ports, disk and
environment."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from cluster.local import ports as ports_module
from cluster.local import processes, ray_env, stack, supervisor

FIRST_FREE, PORTS_EACH = 220, 3
"""Offset in a stack's block of ports, and number of ports, for the Serve proxy of each worker
node."""
REDIS = 250
START_S, END_S = 180, 40
POLL_S = 0.25


@dataclass(frozen=True)
class Machine:
    """A running node, or another program of Ray, with its process and its disk."""

    name: str
    process: "subprocess.Popen[bytes]"
    disk: Path
    log: Path
    proxy_url: str
    """Address of its Serve proxy."""


class Machines:
    """The nodes of a cluster. `stop` ends all remaining processes by their process ids.

    Serve, S3 and the token are configured as in the local stack. `environment` adds variables on
    every node.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str]) -> None:
        self.base, self._claim = ports_module.claim_ports()
        self._folder = folder
        # The paths of Ray's sockets must be shorter than 108 bytes.
        self._temp_dir = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
        self._keys = ray_env.stack_keys(folder)
        settings = ray_env.environment(
            self.base, folder=folder, temp_dir=self._temp_dir, keys=self._keys
        )
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        }
        s3 = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self._environment = inherited | settings | s3 | dict(environment)
        self._machines: list[Machine] = []
        self._num_workers = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Make this process and its child processes use the cluster until the block ends."""
        before = dict(os.environ)
        addresses = ("RAY_API_SERVER_ADDRESS", "TAILORBIRD_SERVE_URL", stack.OWN_DASHBOARD)
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", *addresses)
        os.environ.update(
            {name: self._environment[name] for name in names} | {"RAY_ADDRESS": self.address}
        )
        reset_auth_token_state()
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            reset_auth_token_state()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.base + ports_module.GCS}"

    @property
    def redis_port(self) -> int:
        return self.base + REDIS

    def head(self, name: str = "head", *options: str, **environment: str) -> Machine:
        """Start a head node without CPUs and wait until it is ready. Every head node has the same
        ports."""
        listed = [
            f"--{port}={self.base + offset}" for port, offset in ports_module.RAY_START.items()
        ]
        head = self._start(
            name, "--head", "--num-cpus=0", *listed, *options, environment=environment
        )
        wait(lambda: supervisor.ray_answers(self.base, keys=self._keys), of=head)
        return head

    def worker(self, name: str, *options: str, **environment: str) -> Machine:
        """Start a worker node. It reuses the disk of an earlier node with the same name."""
        first = self.base + FIRST_FREE + PORTS_EACH * self._num_workers
        self._num_workers += 1
        assert first + PORTS_EACH <= self.base + REDIS, "there are no free ports for another node"
        proxy = {
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(first),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(first + 1),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(first + 2),
        }
        listed = (f"--address={self.address}", "--dashboard-agent-listen-port=0")
        return self._start(name, *listed, *options, environment=proxy | environment)

    def _start(self, name: str, *options: str, environment: Mapping[str, str]) -> Machine:
        disk = self._folder / name
        own = {
            "TAILORBIRD_CACHE": str(disk / "cache"),
            "TAILORBIRD_JOURNAL": str(disk / "request-log"),
        }
        common = (
            *("--block", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"),
            *(f"--object-store-memory={200 << 20}", f"--temp-dir={self._temp_dir}/{name}"),
        )
        return self.program(name, "start", *common, *options, environment=own | dict(environment))

    def program(self, name: str, *arguments: str, environment: Mapping[str, str]) -> Machine:
        """Start `ray` with these arguments."""
        disk, log = self._folder / name, self._folder / f"{len(self._machines)}-{name}.log"
        disk.mkdir(exist_ok=True)
        command = [processes.program("ray"), *arguments]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=disk,
                env=self._environment | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                preexec_fn=processes.end_with_parent,
            )
        port = environment.get(
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT", str(self.base + ports_module.SERVE)
        )
        machine = Machine(name, process, disk, log, f"http://127.0.0.1:{port}")
        self._machines.append(machine)
        return machine

    def stop(self) -> None:
        """End all remaining nodes, worker nodes first."""
        for machine in reversed(self._machines):
            if machine.process.poll() is None:
                end(machine)
        shutil.rmtree(self._temp_dir, ignore_errors=True)
        self._claim.close()


def joined(machine: Machine) -> bool:
    """Return True if the node has joined its cluster."""
    return "Ray runtime started" in machine.log.read_text()


def end(machine: Machine) -> None:
    """End a node with SIGTERM and wait until its processes have ended."""
    members = stack.family(machine.process.pid)
    machine.process.terminate()
    stack.await_end(members, timeout_s=END_S)
    machine.process.wait()


def kill(machine: Machine) -> None:
    """Kill all processes of a node without notice, as a power failure does."""
    members = stack.family(machine.process.pid)
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    stack.await_end(members, timeout_s=END_S)
    machine.process.wait()


def wait(
    condition: Callable[[], bool], *, of: Machine | None = None, within_s: float = START_S
) -> float:
    """Wait for a condition and return the seconds; fail with the end of the node's log if the node
    ends before."""
    begun = time.monotonic()
    while not condition():
        if of is not None and of.process.poll() is not None:
            raise AssertionError(of.log.read_text()[-3000:])
        assert time.monotonic() - begun < within_s, f"the condition is not met after {within_s} s"
        time.sleep(POLL_S)
    return time.monotonic() - begun


def report_figure(what: str, figure: object) -> None:
    """Print a figure for the docs. `pytest -rP` shows it."""
    print(f"{what}: {figure}")


@contextmanager
def redis_server(folder: Path, *, port: int, password: str) -> Iterator[str]:
    """Yield the address of a new Redis server that writes its data to disk; skip the test if Redis
    is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed; run `apt-get install redis-server`")
    folder.mkdir()
    settings = (
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nrequirepass {password}\nappendonly yes\nsave "
        "''\n"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                program,
                "-",
            ],  # the settings come from its input, because arguments are visible to other users
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=processes.end_with_parent,
        )
    assert server.stdin is not None
    server.stdin.write(settings.encode())
    server.stdin.close()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(END_S)
