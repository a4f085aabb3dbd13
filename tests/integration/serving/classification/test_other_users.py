"""What a running stack with a service gives to clients without credentials and to other users of
the machine."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest
import requests

from cluster.local import ports
from cluster.local import stack as stacks

ANYONE = {
    ports.SERVE: "/v1/models",  # a service without API keys, on loopback
    ports.FALLBACK_HTTP: "/v1/models",
    ports.REPLICAS_HTTP: "/v1/models",
    ports.HAPROXY_METRICS: "/metrics",
    ports.HAPROXY_STATS: "/stats",
    ports.METRICS: "/metrics",
    ports.DASHBOARD_METRICS: "/metrics",
    ports.SCALER_METRICS: "/metrics",
}
"""Ports that demand no credential, with a path that they answer. docs/security.md lists them."""
PATHS = ("/metrics", "/stats", "/v1/models", "/api/version", "/api/jobs/", "/logs/")
TOKEN_BY_HTTP = {ports.DASHBOARD, ports.AGENT, ports.RUNTIME_ENV_AGENT}
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.LogService/ListLogs",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.serve.ASGIService/HandleRequest",
)
"""A call of each of Ray's services: GCS, raylet, object manager, worker, agent, Ray client, and
replica."""
NOBODY = 65534


def addresses(stack: stacks.StackState) -> Iterator[tuple[int, str]]:
    """Yield the offset and the address of each port on which a process of the stack listens."""
    base = stack.serve_port - ports.SERVE
    members = {process.pid for process in stacks.family(stack.pid)}
    for item in psutil.net_connections("tcp"):
        if item.status != psutil.CONN_LISTEN or not item.laddr:
            continue
        offset = item.laddr.port - base
        # HAProxy is not a child process of the stack. The claimed port accepts no connection.
        if (item.pid in members or 0 <= offset < ports.BLOCK) and offset != ports.CLAIM:
            host = item.laddr.ip.removeprefix("::ffff:")
            yield offset, f"{'127.0.0.1' if host in ('::', '0.0.0.0') else host}:{item.laddr.port}"


def statuses(address: str) -> dict[str, int]:
    """Return the HTTP status of each path that the port answers."""
    answers = {}
    for path in PATHS:
        with suppress(requests.RequestException):
            answers[path] = requests.get(f"http://{address}{path}", timeout=3).status_code
    return answers


def codes(address: str) -> dict[str, grpc.StatusCode]:
    """Return the status of each call."""
    answers = {}
    with grpc.insecure_channel(address) as channel:
        for call in CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=3)
                answers[call] = grpc.StatusCode.OK
            except grpc.RpcError as error:
                answers[call] = error.code()
    return answers


@pytest.mark.usefixtures("service")
def test_only_the_documented_ports_answer_clients_without_a_credential(
    stack: stacks.StackState,
) -> None:
    answers = [(offset, statuses(address)) for offset, address in addresses(stack)]
    replicas = range(ports.REPLICAS_HTTP, ports.REPLICAS_GRPC)
    accepted = {
        (ports.REPLICAS_HTTP if offset in replicas else offset, path)
        for offset, status in answers
        for path, code in status.items()
        if code < 300
    }
    assert accepted >= set(ANYONE.items())
    assert {offset for offset, _ in accepted} == set(ANYONE)
    assert {offset for offset, status in answers if 401 in status.values()} == TOKEN_BY_HTTP


@pytest.mark.usefixtures("service")
def test_ray_s_services_refuse_calls_without_the_token(stack: stacks.StackState) -> None:
    answers = [
        (call, code) for _, address in addresses(stack) for call, code in codes(address).items()
    ]
    assert {call for call, code in answers if code is grpc.StatusCode.UNAUTHENTICATED} == set(CALLS)
    other = {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAVAILABLE,
    }
    assert [(call, code) for call, code in answers if code not in other] == []


@pytest.mark.usefixtures("service")
def test_files_of_the_stack_are_private(stack: stacks.StackState) -> None:
    folder, temp_dir = Path(stack.token_path).parent, Path(stack.temp_dir)
    assert [_mode(path) for path in (folder, temp_dir)] == [0o700, 0o700]
    public = {
        path for root in (folder, temp_dir) for path in root.rglob("*") if _mode(path) & 0o077
    }
    # These programs set modes themselves. Their files are in folders that only the owner can enter.
    ray, haproxy = temp_dir / "ray", temp_dir / "haproxy"
    by_ray = {
        path
        for path in public
        if path.is_relative_to(ray) and (path.is_dir() or "runtime_resources" in path.parts)
    }
    by_haproxy = {
        path for path in public if path.is_relative_to(haproxy) and path.name == "metrics.sock"
    }  # by Ray
    by_seaweedfs = {path for path in public if path.suffix == ".vif"}
    # A driver, here this test's process, writes its log, its events and its trials' results with
    # its own umask.
    in_ray = {path: path.relative_to(ray) for path in public if path.is_relative_to(ray)}
    by_drivers = {
        path
        for path, name in in_ray.items()
        if "driver" in str(name) or {"events", "export_events"} & {*name.parts}
    }
    assert public - by_ray - by_haproxy - by_seaweedfs - by_drivers == set()
    assert ray in by_ray
    assert by_haproxy


def _mode(path: Path) -> int:
    """Return the permissions of a file; 0 for links and files that have been deleted."""
    with suppress(FileNotFoundError):
        return 0 if path.is_symlink() else path.stat().st_mode & 0o777
    return 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_cannot_enter_the_folders_of_the_stack(stack: stacks.StackState) -> None:
    for folder in (stack.temp_dir, str(Path(stack.token_path).parent)):
        tried = subprocess.run(
            ["ls", folder],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (tried.returncode, tried.stdout) == (2, "")
        assert "Permission denied" in tried.stderr
