"""A chat service over vLLM: the engine's metrics, and an engine that is killed."""

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
import ray
import requests

from cluster.connection import connect
from cluster.local import stack
from serving.deploy import application, rollout
from tests.integration.load import processes
from tests.integration.serving.chat_service import QUESTIONS, TASK_URI, Service
from tests.integration.serving.classification.service import metrics_url, wait_until
from tests.k8s.monitoring import queries
from tests.unit.serving.engines.test_vllm_engine import needs_vllm

pytestmark = needs_vllm
ENGINE = "^VLLM::EngineCore"
SERVER = "^ray::VllmServer"
REPLICA = "^ray::ServeReplica"


@pytest.fixture(scope="module")
def service(stack: stack.StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    assert stack.serve_port
    service = Service(tmp_path_factory.mktemp("vllm"))
    service.deploy(service.first)
    yield service
    rollout.undeploy(application.application_name(TASK_URI))


def pids_of(state: stack.StackState, pattern: str) -> set[int]:
    """Return the ids of the stack's processes whose title matches the pattern."""
    return {process.pid for process in processes(state, pattern)}


def test_rays_prometheus_endpoint_has_the_metrics_of_the_engine(service: Service) -> None:
    service.ask("abc")
    with connect():
        (node,) = ray.nodes()
    names = {
        "ray_vllm_num_requests_running",
        "ray_vllm_kv_cache_usage_perc",
        "ray_vllm_generation_tokens_total",
        "ray_vllm_time_to_first_token_seconds_bucket",
    }
    wait_until(lambda: names <= queries.exposed(requests.get(metrics_url(node), timeout=60).text))
    assert queries.OF_VLLM in queries.kept()
    metrics = requests.get(metrics_url(node), timeout=60).text
    (line,) = [
        line
        for line in metrics.splitlines()
        if line.startswith("ray_vllm_generation_tokens_total{")
    ]
    assert float(line.rsplit(" ", 1)[-1]) > 0


@contextmanager
def under_load(service: Service) -> Iterator[list[int]]:
    """Send questions from four clients until the block ends, and yield the statuses of the
    responses so far."""
    statuses: list[int] = []
    over = threading.Event()

    def send(number: int) -> None:
        for question in itertools.islice(itertools.cycle(QUESTIONS), number, None):
            body = {"messages": [{"role": "user", "content": question}]}
            statuses.append(
                requests.post(
                    f"{service.url}/v1/chat/completions", json=body, timeout=60
                ).status_code
            )
            if over.wait(0.05):
                return

    with ThreadPoolExecutor(4) as clients:
        sending = [clients.submit(send, number) for number in range(4)]
        try:
            yield statuses
        finally:
            over.set()
        for future in sending:
            future.result()  # a request without a response within 60 s is an error


@pytest.mark.parametrize("victim", [ENGINE, SERVER], ids=["engine", "server"])
def test_an_engine_that_is_killed_is_replaced_and_requests_are_answered_again(
    stack: stack.StackState, service: Service, victim: str
) -> None:
    expected = service.expected(service.first)
    before = {pattern: pids_of(stack, pattern) for pattern in (ENGINE, SERVER, REPLICA)}
    assert all(before.values()), before
    with under_load(service) as statuses:
        wait_until(lambda: len(statuses) > 20)
        for pid in before[victim]:
            psutil.Process(pid).kill()
        wait_until(lambda: pids_of(stack, ENGINE) - before[ENGINE])
        wait_until(lambda: set(statuses[-20:]) == {200})
    counts = Counter(statuses)
    assert set(counts) <= {200, 500, 503}, counts
    # at most one per client, in the second before the engine's end is noticed
    assert counts[500] <= 4, counts
    assert [service.ask(question).choices[0].message.content for question in QUESTIONS] == expected
    wait_until(lambda: not any(pids & pids_of(stack, pattern) for pattern, pids in before.items()))
