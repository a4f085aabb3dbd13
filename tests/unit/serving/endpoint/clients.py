"""Engines of an endpoint, and clients of a service with such an engine."""

from typing import Any

from starlette.testclient import TestClient

from serving.endpoint.chat_engine import EndpointChatEngine
from serving.endpoint.upstream import Limits, Upstream
from serving.http.metrics import Meter
from serving.replica.chat import Chat
from tailorbird.config.serving import ServingConfig
from tailorbird.models.endpoint.client import RetryPolicy
from tests.endpoint_server import Server
from tests.unit.serving.endpoint.versions import endpoint_version
from tests.unit.serving.http.application import application

RETRY = RetryPolicy(max_attempts=3, first_delay_s=0.001, max_delay_s=0.01, client_waits=True)


def engine_of(
    server: Server, *, meter: Meter | None = None, timeout_s: float = 5, **fields: Any
) -> EndpointChatEngine:
    version, limits = endpoint_version(server.url, **fields), Limits(4, timeout_s)
    upstream = Upstream(version, limits=limits, meter=meter or Meter(), retry=RETRY)
    return EndpointChatEngine(version, upstream=upstream, concurrency=limits.concurrency)


def client_of(engine: EndpointChatEngine) -> TestClient:
    app = application(Chat, ServingConfig(), engine)
    return TestClient(app, base_url="http://127.0.0.1")


def chat(client: TestClient, text: str = "hello", **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": text}]} | fields
    return client.post("/v1/chat/completions", json=body)
