"""Engines of an endpoint, and clients of a service with such an engine."""

from typing import Any

from starlette.testclient import TestClient

from serving.endpoint.chat_engine import EndpointChatEngine
from serving.endpoint.upstream import Limits, Upstream
from serving.http.metrics import Meter
from serving.limits import FairSlots
from serving.replica.base import Replica
from serving.replica.chat import Chat
from serving.replica.served_versions import ServedVersions
from tailorbird.config.serving import ServingConfig
from tailorbird.models.endpoint.client import RetryPolicy
from tests.endpoint_server import Server
from tests.unit.serving.endpoint.versions import endpoint_version

RETRY = RetryPolicy(max_attempts=3, first_delay_s=0.001, max_delay_s=0.01, client_waits=True)


def engine_of(
    server: Server, *, meter: Meter | None = None, timeout_s: float = 5, **fields: Any
) -> EndpointChatEngine:
    version, limits = endpoint_version(server.url, **fields), Limits(4, timeout_s)
    upstream = Upstream(version, limits=limits, meter=meter or Meter(), retry=RETRY)
    return EndpointChatEngine(version, upstream=upstream, concurrency=limits.concurrency)


def client_of(engine: EndpointChatEngine, *, meter: Meter | None = None) -> TestClient:
    versions: ServedVersions[Any] = ServedVersions(lambda _uri, _digest: engine, read_secret=bytes)
    versions.engines = {"champion": engine}
    service: Any = object.__new__(Chat)
    service._config = ServingConfig()
    service._replica = Replica(
        versions, task="chat", task_uri="s3://models/task", config=service._config, meter=meter
    )
    service._prompts = FairSlots(1)
    return TestClient(service.__serve_build_asgi_app__(), base_url="http://127.0.0.1")


def chat(client: TestClient, text: str = "hello", **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": text}]} | fields
    return client.post("/v1/chat/completions", json=body)
