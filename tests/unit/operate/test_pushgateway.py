"""Requests to a Pushgateway; the server is a stand-in that records them."""

from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

import pytest

from tailorbird.monitoring.request_log import MonitoringError
from tailorbird.operate.pushgateway import push_metrics
from tests.unit.cluster.stand_in import serving

METRICS = 'tailorbird_watch_answers{model="a"} 3\n'


@dataclass
class Gateway:
    """A server that answers every request with `status`."""

    url: str = ""
    status: int = 200
    received: tuple[str, str, str] | None = None

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        self.received = (request.command, request.path, body.decode())
        return self.status, b"pushed metrics are invalid" if self.status >= 400 else b""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    with serving(gateway.answer) as gateway.url:
        yield gateway


def test_the_gauges_of_a_model_replace_its_earlier_ones(gateway: Gateway) -> None:
    push_metrics(METRICS, to=f"{gateway.url}/", model="my-task")
    assert gateway.received == ("PUT", "/metrics/job/tailorbird-watch/model/my-task", METRICS)


def test_refused_metrics_are_an_error_with_the_answer_and_without_the_password(
    gateway: Gateway,
) -> None:
    gateway.status = 400
    message = f"the Pushgateway at {gateway.url} does not accept .*(400: pushed metrics are invalid"
    with pytest.raises(MonitoringError, match=message.replace("(", r"\(")) as refused:
        push_metrics(METRICS, to=gateway.url.replace("//", "//me:s3cr@et@"), model="my-task")
    assert "s3cr" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "pushgateway:9091"])
def test_a_pushgateway_that_does_not_answer_is_an_error_with_its_address(url: str) -> None:
    with pytest.raises(MonitoringError, match=f"the Pushgateway at {url} does not accept"):
        push_metrics(METRICS, to=url, model="my-task")
