"""HAProxy with our rules in the configuration of Ray's template, in front of two servers."""

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.serve._private import constants
from ray.serve._private.haproxy_metrics import HAProxyMetricsCollector

from cluster.local.haproxy import HAPROXY_SETTINGS, PROGRAM, REPEATABLE, RULES, with_rules
from cluster.local.haproxy import METHODS as PROXY_METHODS
from serving.http.openapi import OPERATIONS
from serving.http.server_middleware import CONTROL_HEADERS, METHODS
from tests import haproxy

NOT_REPEATABLE = ("/v1/feedback",)


def get(path: str, *, host: bytes = b"localhost") -> bytes:
    """Return the bytes of a request."""
    head = b"GET %s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n"
    return head % (path.encode(), host)


class Servers:
    """Two servers that answer 500 or no bytes to paths that end with the query of this name, else
    their headers."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        servers = self

        class Service(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                path, _, query = self.path.partition("?")
                if path != "/-/healthz":
                    servers.requests[self.path] += 1
                if query == "none":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(500 if query == "500" else 200)
                content = json.dumps(
                    [[name, value] for name, value in self.headers.items()]
                ).encode()
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Service) for _ in range(2)]

    def start(self) -> list[int]:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return [server.server_port for server in self.servers]


class Proxy:
    """A running HAProxy, and the log lines from which Ray makes metrics."""

    def __init__(self, servers: Servers, folder: Path, stack: ExitStack) -> None:
        self.servers = servers
        self._logged = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._logged.bind(str(folder / "metrics.sock"))
        self._logged.setblocking(False)
        ports = servers.start()
        self.port = stack.enter_context(haproxy.running(folder, servers=ports))

    def send(self, method: bytes, path: str, *headers: bytes, host: bytes = b"localhost") -> bytes:
        first = b"%s %s HTTP/1.1" % (method, path.encode())
        head = b"\r\n".join([first, b"host: " + host, b"connection: close", *headers])
        length = b"\r\ncontent-length: 2" if method == b"POST" else b""
        return haproxy.send(self.port, head + length + b"\r\n\r\n" + (b"{}" if length else b""))

    def counted_methods(self) -> set[str | None]:
        """Return the methods of the requests that were logged since the last call."""
        methods = set()
        with suppress(BlockingIOError):
            while True:
                parsed = HAProxyMetricsCollector.parse_line(self._logged.recv(1 << 16))
                assert parsed is not None
                methods.add(parsed.method)
        return methods


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with ExitStack() as stack:
        yield Proxy(Servers(), tmp_path_factory.mktemp("haproxy"), stack)


@pytest.mark.parametrize("failure", ["500", "none"])
def test_only_requests_that_change_nothing_are_repeated(proxy: Proxy, failure: str) -> None:
    for path in (*REPEATABLE, *NOT_REPEATABLE):
        assert haproxy.parsed(proxy.send(b"POST", f"{path}?{failure}"))[0] == (
            500 if failure == "500" else 502
        )
        assert proxy.servers.requests[f"{path}?{failure}"] == (2 if path in REPEATABLE else 1), path
    proxy.send(b"GET", f"/v1/models?{failure}")
    assert proxy.servers.requests[f"/v1/models?{failure}"] == 2


def test_each_post_route_is_repeatable_or_not() -> None:
    known = {path for path, operation in OPERATIONS.items() if operation.request is not None}
    assert known <= {*REPEATABLE, *NOT_REPEATABLE}
    assert set(REPEATABLE) <= known


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/-/routes", "/-/healthz"])
def test_unknown_methods_are_refused_and_make_no_metric(proxy: Proxy, path: str) -> None:
    proxy.counted_methods()
    assert haproxy.error_type(proxy.send(b"MAKE-SERIES", path)) == (405, "wrong_method")
    assert haproxy.parsed(proxy.send(b"PUT", path))[0] == 200
    methods: set[str | None] = set()
    while "PUT" not in methods:  # HAProxy logs a request after its response
        methods |= proxy.counted_methods()
    assert "MAKE-SERIES" not in methods


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/-/ROUTES"])
def test_serves_own_paths_are_answered_only_for_names_of_this_machine(
    proxy: Proxy, path: str
) -> None:
    for host in (b"evil.example", b"localhost.evil.example", b"evil.example:80", b"127.0.0.1."):
        assert haproxy.error_type(proxy.send(b"GET", path, host=host)) == (403, "foreign_page"), (
            host
        )
    assert haproxy.parsed(proxy.send(b"GET", path, host=b"localhost,evil.example"))[0] == 400
    for host in (b"localhost", b"LOCALHOST:8000", b"127.0.0.1:%d" % proxy.port, b"[::1]:8000"):
        assert haproxy.parsed(proxy.send(b"GET", path, host=host))[0] == 200, host
    assert (
        haproxy.parsed(haproxy.send(proxy.port, b"GET %s HTTP/1.0\r\n\r\n" % path.encode()))[0]
        == 200
    )


def test_a_service_for_other_machines_answers_for_every_name(tmp_path: Path) -> None:
    with haproxy.running(tmp_path, servers=[], host="0.0.0.0") as port:
        for host in (b"service.example", b"10.0.0.7:8000"):
            assert haproxy.parsed(haproxy.send(port, get("/-/routes", host=host)))[0] == 200
            nowhere = haproxy.send(port, get("/nowhere", host=host))
            assert haproxy.error_type(nowhere) == (404, "unknown_route")


def test_a_client_with_idle_connections_leaves_half_of_them_for_others(tmp_path: Path) -> None:
    request = get("/-/healthz")
    servers = Servers()
    with (
        haproxy.running(tmp_path, servers=servers.start(), maxconn=40) as port,
        ExitStack() as idle,
    ):
        for _ in range(19):
            idle.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert haproxy.parsed(haproxy.send(port, request))[0] == 200
        for _ in range(21):
            idle.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert haproxy.send(port, request) == b""
        assert haproxy.parsed(haproxy.send(port, request, client="127.0.0.2"))[0] == 200


def test_rules_survive_a_reload(tmp_path: Path) -> None:
    (port,) = haproxy.free_ports(1)
    path = haproxy.render(tmp_path, port=port, servers=[])
    first = haproxy.start(path)
    processes = [first]
    try:
        haproxy.await_answer(port, first)
        haproxy.render(tmp_path, port=port, servers=[])
        assert RULES not in path.read_text()
        processes.append(
            haproxy.start(path, "-sf", str(first.pid), "-x", str(tmp_path / "admin.sock"))
        )
        assert first.wait(30) == 0
        answer = haproxy.send(port, b"MAKE-SERIES /-/routes HTTP/1.0\r\n\r\n")
        assert haproxy.error_type(answer) == (405, "wrong_method")
        assert (tmp_path / "admin.sock").stat().st_mode & 0o777 == 0o600
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_rules_are_added_once_and_only_to_the_configuration_of_rays_template(
    tmp_path: Path,
) -> None:
    written = haproxy.render(tmp_path, port=1, servers=[]).read_text()
    once = with_rules(written)
    assert with_rules(once) == once
    for section in (
        "frontend http_frontend",
        "frontend prometheus",
        "backend default_backend",
        "mode 666",
        "maxconn",
    ):
        with pytest.raises(ValueError, match=r"Ray 2\.60"):
            with_rules(written.replace(section, "other"))


def test_pages_of_haproxy_are_for_this_machine_if_the_service_is(tmp_path: Path) -> None:
    written = {
        host: with_rules(haproxy.render(tmp_path, port=1, servers=[], host=host).read_text())
        for host in ("127.0.0.1", "0.0.0.0")
    }
    bound = {
        host: re.findall(r"^ +bind (\S*):", text, re.MULTILINE) for host, text in written.items()
    }
    assert bound == {"127.0.0.1": ["127.0.0.1"] * 3, "0.0.0.0": ["", "*", "*"]}


def test_headers_that_control_serve_are_removed(proxy: Proxy) -> None:
    names = {name for header in CONTROL_HEADERS for name in (header, header.replace(b"-", b"_"))}
    # Serve does not read these
    names -= {b"x_request_timeout_seconds", b"x_request_disconnect_disabled"}
    names.add(b"upgrade")
    sent = [b"connection: upgrade", *(name.title() + b": \xff" for name in names)]
    _, _, content = haproxy.parsed(proxy.send(b"GET", "/", *sent, b"x-other: 1"))
    received = {name.lower() for name, _ in json.loads(content)}
    assert "x-other" in received
    assert not {name.decode() for name in names} & received


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([b"A.z_9-"], ["A.z_9-"]),
        ([b"a" * 128], ["a" * 128]),
        ([b"a" * 129], []),
        ([b"\xff"], []),
        ([b"a b"], []),
        ([b"good", b"\xff"], []),
    ],
)
def test_ids_that_are_not_valid_are_removed(
    proxy: Proxy, ids: list[bytes], kept: list[str]
) -> None:
    _, _, content = haproxy.parsed(
        proxy.send(b"GET", "/", *(b"X-Request-Id: " + sent for sent in ids))
    )
    assert [value for name, value in json.loads(content) if name.lower() == "x-request-id"] == kept


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ],
)
def test_invalid_http_reaches_no_server_and_gets_the_page_of_the_proxy(
    proxy: Proxy, request_bytes: bytes
) -> None:
    before = proxy.servers.requests.total()
    status, headers, _ = haproxy.parsed(haproxy.send(proxy.port, request_bytes))
    assert (status, headers["content-type"]) == (400, "text/html")
    assert proxy.servers.requests.total() == before


def test_a_request_without_a_server_is_a_503_in_the_services_format(tmp_path: Path) -> None:
    servers = Servers()
    with haproxy.running(tmp_path, servers=servers.start()) as port:
        for server in servers.servers:
            server.shutdown()
            server.server_close()
        answer = haproxy.send(port, get("/v1/models"))
    assert haproxy.error_type(answer) == (503, "not_available")
    assert haproxy.parsed(answer)[1]["cache-control"] == "no-store"


def test_the_rules_and_the_middleware_accept_the_same_methods() -> None:
    assert frozenset(PROXY_METHODS.split()) == METHODS


def test_ray_reads_every_setting() -> None:
    read = Path(constants.__file__).read_text(encoding="utf-8")
    assert [name for name in (*HAPROXY_SETTINGS, PROGRAM) if f'"{name}"' not in read] == []
