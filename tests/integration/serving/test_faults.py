"""What may happen to a service while clients ask: it answers on, or says that it is busy, and mends itself."""

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
from typing import Any
from urllib.parse import urlsplit

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import requests
from ray._private.authentication_test_utils import reset_auth_token_state
from ray._private.utils import get_system_memory, get_used_memory

from cluster.connection import connect
from cluster.local import stack
from serving.deploy import rollout, serve_client
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.versions import ModelVersion
from tests.integration.load import Responses, under_load
from tests.integration.serving.classification.service import TEXTS, Service

pytestmark = pytest.mark.slow

NUM_REPLICAS = 2
TASK_URI = "s3://models/serving-faults"
LOG = "s3://lake/serving-faults"
BUSY = {429, 503}
MENDED_S = 90.0
ENOUGH = 200  # requests of all clients together before and after a fault: each client sends several


class Faulty:
    """A stack of this module's own, which its tests may break, and the service on it."""

    def __init__(self, state: stack.StackState, service: Service) -> None:
        self.state, self.service = state, service
        config = ServingConfig(min_replicas=NUM_REPLICAS, max_replicas=NUM_REPLICAS, request_log=LOG)
        self.config = config
        self.url = rollout.deploy(config, task_uri=TASK_URI, version=service.first)

    @property
    def version(self) -> ModelVersion:
        return self.service.first

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Of the stack, those whose command line has the pattern."""
        processes = []
        for process in psutil.Process(self.state.pid).children(recursive=True):
            try:
                if re.search(pattern, " ".join(process.cmdline())) and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
            except psutil.NoSuchProcess:
                continue
        return processes

    def replicas(self) -> list[psutil.Process]:
        return self.processes("^ray::ServeReplica")

    def is_whole(self) -> bool:
        """As many replicas as there are to be, and each answers."""
        pids = {process.pid for process in self.replicas()}
        replicas = serve_client.replicas_of("serving-faults")
        running = {replica.pid for replica in replicas if replica.state == "RUNNING"}
        return len(running) == NUM_REPLICAS and running <= pids

    def mended(self, responses: Responses | None = None) -> None:
        """Wait until nothing is missing, and then until clients have sent further requests."""
        wait(self.is_whole, within_s=MENDED_S)
        if responses is not None:
            responses.wait_for(ENOUGH)


def wait(condition: Callable[[], bool], *, within_s: float = MENDED_S) -> None:
    """Wait until the condition holds."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, f"not within {within_s} s"
        time.sleep(0.2)


@contextmanager
def own_stack(folder: Path, *, num_cpus: int, **more: str) -> Iterator[stack.StackState]:
    """A stack, started in an environment with `more`, that this process uses while the block lasts."""
    before = dict(os.environ)
    os.environ.update(more)
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
    with own_stack(folder, num_cpus=NUM_REPLICAS) as state:
        yield Faulty(state, Service(TASK_URI, folder / "versions"))


@pytest.fixture
def responses(faulty: Faulty) -> Iterator[Responses]:
    """Eight clients that ask while a test breaks something."""
    faulty.mended()
    with under_load(faulty.url, TEXTS) as responses:
        responses.wait_for(ENOUGH)
        yield responses


def test_a_killed_replica_costs_no_request_and_comes_back(faulty: Faulty, responses: Responses) -> None:
    for _ in range(2):
        victim = faulty.replicas()[0]
        victim.kill()
        victim.wait(10)
        faulty.mended(responses)
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)


def test_rows_of_a_killed_replica_reach_the_log(faulty: Faulty) -> None:
    faulty.mended()
    with under_load(faulty.url, TEXTS) as responses:
        responses.wait_for(ENOUGH)
        for victim in faulty.replicas():
            victim.kill()
        faulty.mended(responses)
    answered = responses.ids(200)
    assert len(answered) > 50

    def logged() -> bool:
        return answered <= set(_logged())

    wait(logged)
    rows = _logged()
    assert len(rows) - len(set(rows)) <= 8 * NUM_REPLICAS  # a client's last request, answered once more by another


def test_a_killed_proxy_is_started_again(faulty: Faulty, responses: Responses) -> None:
    for proxy in faulty.processes(r"haproxy.* -f "):
        proxy.kill()
    wait(lambda: bool(responses.statuses()[0]))
    wait(lambda: responses.last(ENOUGH) == {200})
    assert set(responses.statuses()) <= {0, 200, 404, *BUSY}  # 404 while the new one does not know the application


def test_a_killed_controller_costs_no_request(faulty: Faulty, responses: Responses) -> None:
    (controller,) = faulty.processes("^ray::ServeController")
    replicas = {process.pid for process in faulty.replicas()}
    controller.kill()
    controller.wait(10)
    wait(lambda: bool(faulty.processes("^ray::ServeController")))
    faulty.mended(responses)
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)
    assert {process.pid for process in faulty.replicas()} == replicas


def test_a_store_that_hangs_for_30_s_holds_up_no_answer_and_loses_no_row(faulty: Faulty) -> None:
    faulty.mended()
    store = psutil.Process(faulty.state.server_pids[0])
    with under_load(faulty.url, TEXTS, timeout_s=20) as responses:  # an answer that waits for the store comes too late
        responses.wait_for(ENOUGH)
        store.suspend()
        try:
            time.sleep(30)
            responses.wait_for(ENOUGH)
        finally:
            store.resume()
        responses.wait_for(ENOUGH)
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)
    wait(lambda: responses.ids(200) <= set(_logged()))


def test_a_version_deleted_under_it_serves_on_and_a_replica_lost_meanwhile_comes_back_with_it(
    faulty: Faulty, responses: Responses, tmp_path: Path
) -> None:
    uri = faulty.version.uri
    storage.download_folder(uri, tmp_path / "kept")
    storage.delete_folder(uri)
    try:
        faulty.replicas()[0].kill()
        starts: set[str] = set()

        def tried_again() -> bool:
            replicas = serve_client.replicas_of("serving-faults")
            starts.update(replica.replica_id for replica in replicas if replica.state == "STARTING")
            return len(starts) > 1

        wait(tried_again)
        assert not faulty.is_whole()
    finally:
        storage.upload_folder(tmp_path / "kept", uri)
    faulty.mended(responses)
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)


def test_hundreds_of_half_sent_bodies_hold_nobody_up_and_are_given_up(faulty: Faulty, responses: Responses) -> None:
    address = urlsplit(faulty.url)
    assert address.hostname
    assert address.port
    head = f"POST /v1/classify HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    slow = [socket.create_connection((address.hostname, address.port)) for _ in range(300)]
    over = threading.Event()

    def drip() -> None:
        while not over.wait(1):
            for connection in slow:
                with suppress(OSError):
                    connection.send(b'"')

    try:
        for connection in slow[40:]:
            connection.sendall(f"{head}content-length: 100\r\n\r\n".encode() + b'{"input": ')
        for connection in slow[:40]:  # more than HAProxy holds: these wait in a replica
            connection.sendall(f"{head}content-length: 100000\r\n\r\n".encode() + b'{"input": ["%s' % (b"a" * 50_000))
        before = len(responses.answers)
        threading.Thread(target=drip, daemon=True).start()
        assert select.select(slow, [], [], 120)[0]
        assert len(responses.answers) - before > 50  # while all the bodies were incomplete
        answers = []
        for connection in slow:
            connection.settimeout(60)
            answers.append(connection.recv(64))
        assert all(b" 408 " in answer for answer in answers), {answer[:20] for answer in answers}
    finally:
        over.set()
        for connection in slow:
            connection.close()
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)


def test_clients_that_hang_up_cost_the_others_nothing(faulty: Faulty, responses: Responses) -> None:
    address = urlsplit(faulty.url)
    replicas = {replica.pid for replica in faulty.replicas()}
    body = b'{"input": ["%s"]}' % b'", "'.join([b"Fracture of femur"] * 64)
    head = f"POST /v1/classify HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    def ask_and_leave(_: int) -> None:
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head + body)

    with ThreadPoolExecutor(16) as leaving:
        list(leaving.map(ask_and_leave, range(400)))
    responses.wait_for(ENOUGH)
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)
    assert {replica.pid for replica in faulty.replicas()} == replicas


def test_more_than_it_can_hold_is_refused_and_memory_stays_bounded(faulty: Faulty) -> None:
    faulty.mended()
    replicas = faulty.replicas()
    before = sum(replica.memory_info().rss for replica in replicas)
    largest = {"input": ["Fracture of femur, " * 200] * faulty.config.max_texts}  # nearly a MiB
    statuses: list[int] = []

    def ask(_: int) -> None:
        answer = requests.post(f"{faulty.url}/v1/classify", json=largest, timeout=120)
        statuses.append(answer.status_code)
        if answer.status_code in BUSY:
            assert int(answer.headers["retry-after"]) > 0

    with under_load(faulty.url, TEXTS, clients=2, timeout_s=120) as responses, ThreadPoolExecutor(24) as clients:
        threading.Thread(target=lambda: list(clients.map(ask, range(24))), daemon=True).start()
        peak = before
        while len(statuses) < 24:
            peak = max(peak, sum(replica.memory_info().rss for replica in replicas))
            time.sleep(0.2)
    assert {replica.pid for replica in faulty.replicas()} == {replica.pid for replica in replicas}
    assert set(statuses) <= {200, *BUSY}
    assert set(responses.statuses()) <= {200, *BUSY}
    assert peak - before < 2 << 30


def test_last_without_the_heads_dashboard_it_answers_on(faulty: Faulty, responses: Responses) -> None:
    dashboards = faulty.processes(r"dashboard/dashboard\.py")
    assert dashboards
    for dashboard in dashboards:
        dashboard.send_signal(signal.SIGTERM)
    wait(lambda: not faulty.processes(r"dashboard/dashboard\.py"))
    responses.wait_for(2 * ENOUGH)
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)


def test_where_memory_runs_out_what_works_beside_the_service_is_ended_and_the_service_stays(tmp_path: Path) -> None:
    total, used = get_system_memory(), get_used_memory()
    # For the stack, a replica, and what the greedy task takes: more than the buffer that Ray frees below its threshold,
    # since for that it would end others too, the newest first.
    room = min(8 << 30, total // 3)
    limit = {"RAY_memory_usage_threshold": f"{(used + room) / total:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    limit["RAY_task_oom_retries"] = "0"
    with own_stack(tmp_path, num_cpus=2, **limit):
        service = Service("s3://models/serving-memory", tmp_path / "versions")
        url = rollout.deploy(ServingConfig(), task_uri="s3://models/serving-memory", version=service.first)
        with connect(), under_load(url, TEXTS, clients=2) as responses:
            # As what works beside a service is: Ray would rather end Serve's own actors than what cannot be repeated.
            greedy = ray.remote(num_cpus=0, max_retries=1)(take).remote(room + (1 << 30))
            with pytest.raises(ray.exceptions.OutOfMemoryError):
                ray.get(greedy, timeout=300)
            responses.wait_for(ENOUGH)
    assert set(responses.statuses()) == {200}, (responses.statuses(), responses.faults)


def take(num_bytes: int) -> None:
    """Takes memory, a little at a time, and holds it for a while."""
    held = []
    for _ in range(num_bytes >> 26):
        held.append(bytearray(os.urandom(1)) * (1 << 26))
        time.sleep(0.05)
    time.sleep(30)


def _logged() -> list[str]:
    """Request ids in the log."""
    files = [uri for uri in storage.list_files(f"{LOG}/answers") if uri.endswith(".parquet")]
    tables: list[Any] = [pq.read_table(_buffer(uri), columns=["request_id"]) for uri in files]
    return [request_id for table in tables for request_id in table["request_id"].to_pylist()]


def _buffer(uri: str) -> Any:
    import pyarrow as pa

    return pa.BufferReader(storage.read_bytes(uri))
