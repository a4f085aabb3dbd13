"""Ray Serve's HAProxy without Ray: the program that adds our rules to the configuration from Ray's
template."""

import json
import os
import re
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from cluster.local import haproxy
from cluster.local.haproxy import HAPROXY_SETTINGS as SETTINGS

START_S = 30


def free_ports(number: int) -> list[int]:
    """Return ports that are free at present."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def render(
    folder: Path, *, port: int, servers: Sequence[int], host: str = "127.0.0.1", maxconn: int = 4096
) -> Path:
    """Write HAProxy's configuration for one application at `/`, or for none without servers."""
    metrics, stats = free_ports(2)
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=port),
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_port=metrics,
        stats_port=stats,
        nbthread=1,
        maxconn=maxconn,
        retry_on=SETTINGS["RAY_SERVE_HAPROXY_RETRY_ON"],
        retries=int(SETTINGS["RAY_SERVE_HAPROXY_RETRIES"]),
        balance_algorithm=SETTINGS["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"],
        has_received_routes=True,
        has_received_servers=True,
    )
    named = [ServerConfig(name=f"s{number}", host="127.0.0.1", port=number) for number in servers]
    backend = BackendConfig(name="app", path_prefix="/", app_name="app", servers=named)
    path = folder / "haproxy.cfg"
    api = HAProxyApi(config, {"app": backend} if servers else {}, config_file_path=str(path))
    api._generate_config_file_internal()
    return path


def start(path: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start HAProxy as Ray does: by the program in the setting."""
    path_of_python = os.pathsep.join(
        (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
    )
    environment = os.environ | {haproxy.PROGRAM: haproxy.__file__, "PATH": path_of_python}
    return subprocess.Popen([haproxy.__file__, "-db", "-f", str(path), *arguments], env=environment)


@contextmanager
def running(
    folder: Path, *, servers: Sequence[int], host: str = "127.0.0.1", maxconn: int = 4096
) -> Iterator[int]:
    """Run HAProxy until the block ends, and yield its port when it has reached a server."""
    (port,) = free_ports(1)
    process = start(render(folder, port=port, servers=servers, host=host, maxconn=maxconn))
    try:
        await_answer(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def await_answer(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until HAProxy answers and, if the configuration has servers, has reached one."""
    deadline = time.monotonic() + START_S
    while not re.match(rb"HTTP/1.1 (200|404) ", send(port, b"GET /-/healthz HTTP/1.0\r\n\r\n")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


def send(port: int, request: bytes, *, client: str = "127.0.0.1") -> bytes:
    """Send the bytes from an address, and return all bytes of the response, or none if the
    connection fails."""
    try:
        with socket.create_connection(
            ("127.0.0.1", port), timeout=30, source_address=(client, 0)
        ) as connection:
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
