"""What only HAProxy, Serve and uvicorn together show: raw bytes on the sockets of the stack and of
a replica."""

import re

import pytest
import ray
import requests

from cluster.connection import connect
from cluster.local import ports
from cluster.local.stack import StackState
from tests.haproxy import error_type, parsed, send
from tests.integration.serving.classification.service import Service, metrics_url, wait_until

SERVES_HEADERS = (
    *(
        b"x-request-id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
    ),
    *(b"serve_multiplexed_model_id", b"serve-multiplexed-model-id"),
)
FURTHER_HEADERS = (
    b"traceparent",
    b"origin",
    b"authorization",
    b"cookie",
    b"user-agent",
    b"accept",
    b"x-other",
)
METHOD = "MAKE-SERIES"


def _get(
    port: int, path: str, *headers: bytes, host: bytes = b"localhost", method: str = "GET"
) -> bytes:
    first = f"{method} {path} HTTP/1.1".encode()
    return send(
        port, b"\r\n".join([first, b"host: " + host, b"connection: close", *headers, b"", b""])
    )


@pytest.fixture(scope="module")
def replica_port(service: Service, stack: StackState) -> int:
    """Port of the replica's own server, which clients reach on clusters without a firewall."""
    first = stack.serve_port - ports.SERVE + ports.REPLICAS_HTTP
    for port in range(first, first + ports.NUM_REPLICA_PORTS):
        answer = _get(port, "/readyz")
        if answer and service.first.digest in answer.decode():
            return port
    raise AssertionError("no replica listens")


def test_no_header_that_is_not_utf_8_is_a_500(
    service: Service, stack: StackState, replica_port: int
) -> None:
    assert service.url
    for port in (stack.serve_port, replica_port):
        # Serve's own proxy, which answers at first, does not read these headers and does not refuse
        # them.
        wait_until(lambda: parsed(_get(port, "/v1/models", b"x-other: \xff"))[0] == 400)  # noqa: B023
        for name in (*SERVES_HEADERS, *FURTHER_HEADERS):
            answer = _get(port, "/v1/models", name + b": a\xff")
            if name in SERVES_HEADERS:
                assert parsed(answer)[0] == 200, (name, answer)  # these are removed
            else:
                assert error_type(answer) == (400, "invalid_header"), name


def test_without_keys_another_host_or_a_malformed_origin_gets_403_on_each_path(
    service: Service, stack: StackState, replica_port: int
) -> None:
    assert service.url
    for port in (stack.serve_port, replica_port):
        for path in (
            "/",
            "/page.js",
            "/docs",
            "/openapi.json",
            "/healthz",
            "/readyz",
            "/v1/models",
            "/nowhere",
        ):
            assert error_type(_get(port, path, host=b"evil.example")) == (403, "foreign_page")
            assert error_type(_get(port, path, b"origin: http://[")) == (403, "foreign_page")
        for path in ("/-/routes", "/-/healthz"):
            assert error_type(_get(port, path, host=b"evil.example")) == (403, "foreign_page")
            assert parsed(_get(port, path))[0] == 200


def test_unknown_methods_get_405_and_make_no_metric(stack: StackState, replica_port: int) -> None:
    for path in ("/v1/models", "/-/routes", "/-/healthz"):
        assert error_type(_get(stack.serve_port, path, method=METHOD)) == (405, "wrong_method")
    assert (
        parsed(_get(replica_port, "/v1/models", method=METHOD))[0] == 400
    )  # of uvicorn, which knows no other methods
    assert error_type(_get(replica_port, "/v1/models", method="TRACE")) == (405, "wrong_method")
    assert error_type(_get(stack.serve_port, "/v1/models", method="DELETE")) == (
        405,
        "wrong_method",
    )
    with connect():
        (node,) = ray.nodes()
        counted = re.compile(r'ray_serve_num_http_requests_total\{[^}]*method="DELETE"')
        wait_until(lambda: counted.search(requests.get(metrics_url(node), timeout=60).text))
        assert METHOD not in requests.get(metrics_url(node), timeout=60).text
