"""Faults of a service under load: it keeps answering or responds that it is busy, and recovers."""

import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import ray
import requests
from ray._private.authentication_test_utils import reset_auth_token_state
from ray._private.utils import get_system_memory, get_used_memory

from cluster.connection import connect
from cluster.local import ports, stack
from serving.deploy import rollout, serve_client
from tailorbird import storage
from tailorbird.config.serving import MAX_TEXTS, ServingConfig
from tailorbird.registry.versions import ModelVersion
from tests.integration.load import Responses, processes, under_load
from tests.integration.serving.classification.service import TEXTS, Service
from tests.integration.small import logged_rows

pytestmark = pytest.mark.long

NUM_REPLICAS = 2
TASK_URI = "s3://models/serving-faults"
LOG = "s3://lake/serving-faults"
BUSY = {429, 503}
RECOVERY_S = 90.0
NUM_REQUESTS = 200  # requests of all clients before and after a fault; each client sends several


class Faulty:
    """A separate stack, whose processes the tests kill, with a service."""

    def __init__(self, state: stack.StackState, service: Service) -> None:
        self.state, self.service = state, service
        config = ServingConfig(
            autoscaling={"min_replicas": NUM_REPLICAS, "max_replicas": NUM_REPLICAS},
            request_log=LOG,
        )
        self.config = config
        self.url = rollout.deploy(config, task_uri=TASK_URI, version=service.first)

    @property
    def version(self) -> ModelVersion:
        return self.service.first

    def processes(self, pattern: str) -> list[psutil.Process]:
        return processes(self.state, pattern)

    def replicas(self) -> list[psutil.Process]:
        return self.processes("^ray::ServeReplica")

    def pids(self) -> set[int]:
        return {process.pid for process in self.replicas()}

    def is_whole(self) -> bool:
        """Return True if all replicas are running and HAProxy sends requests to each of them."""
        pids = self.pids()
        running = {
            replica.replica_id
            for replica in serve_client.replicas_of("serving-faults")
            if replica.state == "RUNNING" and replica.pid in pids
        }
        return len(running) == NUM_REPLICAS and self._proxied() == running

    def _proxied(self) -> set[str]:
        """Return the ids of the replicas that HAProxy regards as up. It knows a new replica seconds
        after Serve."""
        port = self.state.serve_port + ports.HAPROXY_METRICS - ports.SERVE
        try:
            metrics = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        except requests.ConnectionError:  # HAProxy is being restarted
            return set()
        up = r'^haproxy_server_status\{proxy="http-serving-faults",server="SERVE_REPLICA_[^"]*-(\w+)",state="UP"\} 1'
        return set(re.findall(up, metrics, re.MULTILINE))

    def wait_for_recovery(self, responses: Responses | None = None) -> None:
        """Wait until all replicas are running, and then until clients have sent further
        requests."""
        wait(self.is_whole, within_s=RECOVERY_S)
        if responses is not None:
            responses.wait_for(NUM_REQUESTS)


def require_answers(responses: Responses) -> None:
    """Check that every request so far was answered."""
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)


def wait(condition: Callable[[], bool], *, within_s: float = RECOVERY_S) -> None:
    """Wait until the condition holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, (
            f"the condition did not hold within {within_s} s"
        )
        time.sleep(0.2)


@contextmanager
def separate_stack(folder: Path, *, num_cpus: int, **variables: str) -> Iterator[stack.StackState]:
    """Start a stack with additional environment variables, and use it in this process during the
    block."""
    before = dict(os.environ)
    os.environ.update(variables)
    state = stack.up(folder / "stack", num_cpus=num_cpus)
    try:
        os.environ.update(state.environment())
        os.environ["TAILORBIRD_CACHE"] = str(folder / "cache")
        reset_auth_token_state()
        (folder / "versions").mkdir()
        yield state
    finally:
        stack.down(folder / "stack")
        os.environ.clear()
        os.environ.update(before)
        reset_auth_token_state()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faulty")
    with separate_stack(folder, num_cpus=NUM_REPLICAS) as state:
        yield Faulty(state, Service(TASK_URI, folder / "versions"))


@pytest.fixture
def responses(faulty: Faulty) -> Iterator[Responses]:
    """Yield the responses to eight clients that send requests during the test."""
    faulty.wait_for_recovery()
    with under_load(faulty.url, TEXTS) as responses:
        responses.wait_for(NUM_REQUESTS)
        yield responses


def test_a_killed_replica_loses_no_request_and_is_replaced(
    faulty: Faulty, responses: Responses
) -> None:
    for _ in range(2):
        victim = faulty.replicas()[0]
        victim.kill()
        victim.wait(10)
        faulty.wait_for_recovery(responses)
    require_answers(responses)


def test_rows_of_killed_replicas_are_written_to_the_log(faulty: Faulty) -> None:
    faulty.wait_for_recovery()
    with under_load(faulty.url, TEXTS) as responses:
        responses.wait_for(NUM_REQUESTS)
        for victim in faulty.replicas():
            victim.kill()
        faulty.wait_for_recovery(responses)
    answered = responses.ids(200)
    assert len(answered) > 50
    wait(lambda: answered <= set(_logged()))
    rows = _logged()
    # a retried request is answered and logged twice
    assert len(rows) - len(set(rows)) <= 8 * NUM_REPLICAS


def test_a_killed_proxy_is_restarted(faulty: Faulty, responses: Responses) -> None:
    for proxy in faulty.processes(r"haproxy.* -f "):
        proxy.kill()
    wait(lambda: bool(responses.statuses()[0]))
    wait(lambda: responses.last(NUM_REQUESTS) == {200})
    # 404 until the new proxy knows the application
    assert set(responses.statuses()) <= {0, 200, 404, *BUSY}


def test_a_killed_controller_loses_no_request(faulty: Faulty, responses: Responses) -> None:
    (controller,) = faulty.processes("^ray::ServeController")
    replicas = faulty.pids()
    controller.kill()
    controller.wait(10)
    wait(lambda: bool(faulty.processes("^ray::ServeController")))
    faulty.wait_for_recovery(responses)
    require_answers(responses)
    assert faulty.pids() == replicas


def test_storage_that_hangs_for_30_s_delays_no_answer_and_loses_no_row(faulty: Faulty) -> None:
    faulty.wait_for_recovery()
    store = psutil.Process(faulty.state.server_pids[0])
    # The timeout is shorter than the hang: a response that waits for storage fails.
    with under_load(faulty.url, TEXTS, timeout_s=20) as responses:
        responses.wait_for(NUM_REQUESTS)
        store.suspend()
        try:
            time.sleep(30)
            responses.wait_for(NUM_REQUESTS)
        finally:
            store.resume()
        responses.wait_for(NUM_REQUESTS)
    require_answers(responses)
    wait(lambda: responses.ids(200) <= set(_logged()))


def test_a_deleted_version_still_serves_and_a_lost_replica_starts_when_it_is_restored(
    faulty: Faulty, responses: Responses, tmp_path: Path
) -> None:
    uri = faulty.version.uri
    storage.download_folder(uri, tmp_path / "kept")
    storage.delete_folder(uri)
    try:
        faulty.replicas()[0].kill()
        starts: set[str] = set()

        def was_retried() -> bool:
            replicas = serve_client.replicas_of("serving-faults")
            starts.update(replica.replica_id for replica in replicas if replica.state == "STARTING")
            return len(starts) > 1

        wait(was_retried)
        assert not faulty.is_whole()
    finally:
        storage.upload_folder(tmp_path / "kept", uri)
    faulty.wait_for_recovery(responses)
    require_answers(responses)


def test_hundreds_of_incomplete_bodies_delay_no_other_request_and_get_408(
    faulty: Faulty, responses: Responses
) -> None:
    address = urlsplit(faulty.url)
    assert address.hostname
    assert address.port
    head = f"POST /v1/classify HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: "
    slow = [socket.create_connection((address.hostname, address.port)) for _ in range(300)]
    over = threading.Event()

    def send_slowly() -> None:
        while not over.wait(1):
            for connection in slow:
                with suppress(OSError):
                    connection.send(b'"')

    try:
        for connection in slow[40:]:
            connection.sendall(f'{head}100\r\n\r\n{{"input": '.encode())
        for connection in slow[:40]:  # beyond HAProxy's buffer, so a replica waits for the rest
            connection.sendall(f'{head}100000\r\n\r\n{{"input": "{"a" * 50_000}'.encode())
        before = len(responses.answers)
        threading.Thread(target=send_slowly, daemon=True).start()
        assert select.select(slow, [], [], 120)[0]
        assert len(responses.answers) - before > 50  # other clients were answered meanwhile
        answers = []
        for connection in slow:
            connection.settimeout(60)
            answers.append(connection.recv(64))
        assert all(b" 408 " in answer for answer in answers), {answer[:20] for answer in answers}
    finally:
        over.set()
        for connection in slow:
            connection.close()
    require_answers(responses)


def test_disconnecting_clients_do_not_affect_others(faulty: Faulty, responses: Responses) -> None:
    address = urlsplit(faulty.url)
    replicas = faulty.pids()
    body = json.dumps({"input": ["Fracture of femur"] * 64})
    head = f"POST /v1/classify HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: {len(body)}"

    def send_and_disconnect(_: int) -> None:
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(f"{head}\r\n\r\n{body}".encode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send_and_disconnect, range(400)))
    responses.wait_for(NUM_REQUESTS)
    require_answers(responses)
    assert faulty.pids() == replicas


def test_excess_requests_are_rejected_and_memory_stays_bounded(faulty: Faulty) -> None:
    faulty.wait_for_recovery()
    replicas = faulty.replicas()
    before = sum(replica.memory_info().rss for replica in replicas)
    largest = {"input": ["Fracture of femur, " * 200] * MAX_TEXTS}  # nearly a MiB
    statuses: list[int] = []

    def ask(_: int) -> None:
        answer = requests.post(f"{faulty.url}/v1/classify", json=largest, timeout=120)
        statuses.append(answer.status_code)
        if answer.status_code in BUSY:
            assert int(answer.headers["retry-after"]) > 0

    with (
        under_load(faulty.url, TEXTS, clients=2, timeout_s=120) as responses,
        ThreadPoolExecutor(24) as clients,
    ):
        threading.Thread(target=lambda: list(clients.map(ask, range(24))), daemon=True).start()
        peak = before
        while len(statuses) < 24:
            peak = max(peak, sum(replica.memory_info().rss for replica in replicas))
            time.sleep(0.2)
    assert faulty.pids() == {replica.pid for replica in replicas}
    assert set(statuses) <= {200, *BUSY}
    assert set(responses.statuses()) <= {200, *BUSY}
    assert peak - before < 2 << 30


def test_the_service_answers_without_the_heads_dashboard(
    faulty: Faulty, responses: Responses
) -> None:
    # This is the last test of `faulty`, because the dashboard is not restarted.
    dashboards = faulty.processes(r"dashboard/dashboard\.py")
    assert dashboards
    for dashboard in dashboards:
        dashboard.send_signal(signal.SIGTERM)
    wait(lambda: not faulty.processes(r"dashboard/dashboard\.py"))
    responses.wait_for(2 * NUM_REQUESTS)
    require_answers(responses)


def test_when_memory_runs_out_other_tasks_are_killed_and_the_service_continues(
    tmp_path: Path,
) -> None:
    total, used = get_system_memory(), get_used_memory()
    # Memory for the stack, a replica and the task. It must exceed the buffer that Ray frees below
    # its threshold; otherwise Ray would also kill other processes, the newest first.
    room = min(8 << 30, total // 3)
    limit = {
        "RAY_memory_usage_threshold": f"{(used + room) / total:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    limit["RAY_task_oom_retries"] = "0"
    with separate_stack(tmp_path, num_cpus=2, **limit):
        service = Service("s3://models/serving-memory", tmp_path / "versions")
        url = rollout.deploy(
            ServingConfig(), task_uri="s3://models/serving-memory", version=service.first
        )
        with connect(), under_load(url, TEXTS, clients=2) as responses:
            # Retriable, like other work on a cluster: Ray would kill Serve's actors before a task
            # without retries.
            greedy = ray.remote(num_cpus=0, max_retries=1)(allocate).remote(room + (1 << 30))
            with pytest.raises(ray.exceptions.OutOfMemoryError):
                ray.get(greedy, timeout=300)
            responses.wait_for(NUM_REQUESTS)
    require_answers(responses)


def allocate(num_bytes: int) -> None:
    """Allocate memory slowly, and keep it for 30 s."""
    held = []
    for _ in range(num_bytes >> 26):
        held.append(bytearray(os.urandom(1)) * (1 << 26))
        time.sleep(0.05)
    time.sleep(30)


def _logged() -> list[str]:
    """Return the clients' request ids in the log."""
    return [row["x_request_id"] for row in logged_rows(LOG)]
