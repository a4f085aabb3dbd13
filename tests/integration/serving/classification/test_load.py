"""Metrics, backpressure and autoscaling."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
import requests

from cluster.connection import connect
from serving.autoscaling import AUTOSCALING
from serving.deploy import rollout, serve_client
from serving.deploy.application import application_name
from serving.http.api_keys import new_key
from tailorbird import storage
from tests.integration.serving.classification.service import (
    CONFIG,
    TEXTS,
    Service,
    metrics_url,
    wait_until,
)
from tests.k8s.monitoring import queries


def test_rays_prometheus_endpoint_has_requests_latencies_and_versions(service: Service) -> None:
    service.ask({"input": TEXTS})
    service.ask({"input": "a", "model": "other"}, status=404)
    wanted = {
        "model": "serving-test",
        "version": service.first.version,
        "application": "serving-test",
    }
    with connect():
        (node,) = ray.nodes()
        url = metrics_url(node)
        metrics = ""

        def all_exported() -> bool:
            """Return True if the metrics have the response with 404 and all series of alerts and
            panels."""
            nonlocal metrics
            metrics = requests.get(url, timeout=60).text
            counted = re.search(
                r'ray_tailorbird_requests_total\{.*route="/v1/classify",status="404"', metrics
            )
            expected = queries.queried_series() - queries.OF_THE_EXPORTER - queries.WHEN_IT_HAPPENS
            return counted is not None and expected <= queries.exposed(metrics)

        wait_until(all_exported)
    for pattern in set(queries.kept()) - {queries.OF_VLLM}:
        assert any(re.fullmatch(pattern, name) for name in queries.exposed(metrics)), pattern
    for name, labels in {
        "tailorbird_requests_total": wanted | {"route": "/v1/classify", "status": "200"},
        "tailorbird_request_seconds_count": wanted | {"route": "/v1/classify"},
        "tailorbird_texts_total": wanted,
        "tailorbird_batch_texts_sum": wanted,
        "tailorbird_serving": wanted | {"role": "champion"},
    }.items():
        lines = [line for line in metrics.splitlines() if line.startswith(f"ray_{name}{{")]
        matching = [
            line
            for line in lines
            if all(f'{key}="{value}"' in line for key, value in labels.items())
        ]
        assert matching, (name, lines)
        assert float(matching[0].rsplit(" ", 1)[-1]) > 0


@pytest.mark.long
def test_one_client_neither_delays_another_nor_takes_all_of_the_queue(service: Service) -> None:
    source, num_texts = "s3://models/serving-fair/keys", 128
    keys = {name: new_key(name) for name in ("few", "many")}
    storage.write_bytes(source, "\n".join(stored.to_line() for _, stored in keys.values()).encode())
    fields = {"api_keys": source, "max_queued_requests": 5 * num_texts // 4}
    config = CONFIG.model_copy(update=fields)
    ended: list[str] = []  # the client of each answered request, in the order of the ends
    over = threading.Event()

    def send(name: str, body: object) -> int:
        headers = {"Authorization": f"Bearer {keys[name][0]}"}
        answer = requests.post(f"{url}/v1/classify", json=body, headers=headers, timeout=120)
        if answer.status_code == 200:
            ended.append(name)
        return answer.status_code

    def send_few() -> set[int]:
        statuses = {send("few", {"input": "fever"})}
        while not over.is_set():
            statuses.add(send("few", {"input": "fever"}))
        return statuses

    try:
        url = rollout.deploy(config, task_uri="s3://models/serving-fair", version=service.first)
        with ThreadPoolExecutor(5) as clients:
            few = clients.submit(send_few)
            large = {"input": ["a fracture of the femur " * 160] * num_texts}
            statuses = list(clients.map(lambda _: send("many", large), range(8)))
            over.set()
        assert few.result() == {200}
        assert set(statuses) == {200, 429}  # two of its requests fit into half of the queue
    finally:
        rollout.undeploy("serving-fair")
    since = ended[
        ended.index("many") :
    ]  # in order of arrival, each small request would wait for a large one
    assert since.count("few") > 3 * since.count("many")


@pytest.mark.long
def test_replicas_follow_the_load_from_zero_and_back_and_no_request_fails(service: Service) -> None:
    task_uri = "s3://models/serving-scaled"
    autoscaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_ongoing_requests": 2.0,
        "downscale_delay_s": 3.0,
        "downscale_to_zero_delay_s": 5.0,
    }
    config = CONFIG.model_copy(update={"autoscaling": autoscaling})
    body = {"input": TEXTS[0]}

    def ask(over: Callable[[], bool]) -> list[int]:
        """Send requests one after another until `over` returns True, at least one. Return the
        statuses."""
        with requests.Session() as session:
            statuses = [session.post(f"{url}/v1/classify", json=body, timeout=120).status_code]
            while not over():
                statuses.append(
                    session.post(f"{url}/v1/classify", json=body, timeout=120).status_code
                )
        return statuses

    def under_load(num_clients: int, until: Callable[[], bool]) -> None:
        over = threading.Event()
        with ThreadPoolExecutor(num_clients) as clients:
            requesting = [clients.submit(ask, over.is_set) for _ in range(num_clients)]
            try:
                wait_until(until)
            finally:
                over.set()
        assert {status for client in requesting for status in client.result()} == {200}

    def switched() -> bool:
        """Deploy another version when two replicas run; when the deploy returns, both must answer
        with it."""
        if _states(task_uri) != ["RUNNING"] * 2:
            return False
        rollout.deploy(config, task_uri=task_uri, version=service.second)
        replicas: set[str] = set()

        def both_answered() -> bool:  # the proxy may get the second replica a little later
            readiness = requests.get(f"{url}/readyz", timeout=60).json()
            assert readiness["digest"] == service.second.digest
            replicas.add(readiness["replica"])
            return len(replicas) == 2

        wait_until(both_answered)
        return True

    rollout.undeploy("serving-test")  # the second replica needs its core
    try:
        url = rollout.deploy(config, task_uri=task_uri, version=service.first)
        wait_until(lambda: not _states(task_uri, stopping=True))
        with ThreadPoolExecutor(12) as clients:  # three times the target of both replicas
            burst = [clients.submit(ask, lambda: True) for _ in range(12)]
            most = _most_replicas(task_uri, until=lambda: all(client.done() for client in burst))
        assert [client.result() for client in burst] == [[200]] * 12
        settled = (
            time.monotonic()
            + AUTOSCALING["look_back_period_s"]
            + AUTOSCALING["upscale_delay_s"]
            + 1
        )
        assert max(most, _most_replicas(task_uri, until=lambda: time.monotonic() > settled)) == 1
        under_load(8, until=switched)
        under_load(1, until=lambda: _states(task_uri) == ["RUNNING"])
        wait_until(lambda: not _states(task_uri))
        # There is no replica, so the deploy waits for a cold start.
        assert rollout.deploy(config, task_uri=task_uri, version=service.first) == url
        assert (
            requests.post(f"{url}/v1/classify", json=body, timeout=60).json()["version"]
            == service.first.version
        )
    finally:
        rollout.undeploy("serving-scaled")
        service.deploy(service.first)


def _states(task_uri: str, *, stopping: bool = False) -> list[str]:
    """Return the states of starting and running replicas, and with `stopping` of the stopping ones
    too."""
    replicas = serve_client.replicas_of(application_name(task_uri))
    return [
        replica.state
        for replica in replicas
        if stopping or replica.state in ("STARTING", "RUNNING")
    ]


def _most_replicas(task_uri: str, *, until: Callable[[], bool]) -> int:
    most = 0

    def watched() -> bool:
        nonlocal most
        most = max(most, len(_states(task_uri)))
        return until()

    wait_until(watched)
    return most
