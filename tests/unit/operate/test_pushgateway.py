"""Requests to a Pushgateway; the server is a stand-in that records them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tailorbird.monitoring.request_log import MonitoringError
from tailorbird.operate.pushgateway import push_metrics

METRICS = 'tailorbird_watch_answers{model="a"} 3\n'


class Gateway(HTTPServer):
    """A server that answers every PUT with `status`."""

    status = 200
    received: tuple[str, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_PUT(self) -> None:
        self.server.received = (
            self.path,
            self.rfile.read(int(self.headers["Content-Length"])).decode(),
        )
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"pushed metrics are invalid" if self.server.status >= 400 else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_gauges_of_a_model_replace_its_earlier_ones(gateway: Gateway) -> None:
    push_metrics(METRICS, to=f"{gateway.url}/", model="my-task")
    assert gateway.received == ("/metrics/job/tailorbird-watch/model/my-task", METRICS)


def test_refused_metrics_are_an_error_with_the_answer(gateway: Gateway) -> None:
    gateway.status = 400
    with pytest.raises(
        MonitoringError, match=r"\(400: pushed metrics are invalid\); the report is stored"
    ):
        push_metrics(METRICS, to=gateway.url, model="my-task")


def test_an_error_contains_no_password(gateway: Gateway) -> None:
    gateway.status = 400
    with pytest.raises(
        MonitoringError, match=f"the Pushgateway at {gateway.url} does not accept"
    ) as refused:
        push_metrics(METRICS, to=gateway.url.replace("//", "//me:s3cr@et@"), model="my-task")
    assert "s3cr" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "pushgateway:9091"])
def test_a_pushgateway_that_does_not_answer_is_an_error_with_its_address(url: str) -> None:
    with pytest.raises(MonitoringError, match=f"the Pushgateway at {url} does not accept"):
        push_metrics(METRICS, to=url, model="my-task")
