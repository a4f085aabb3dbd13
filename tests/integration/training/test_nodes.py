"""Lost nodes: a worker node of a job, a worker node of a service, and the head node.

test_faults.py tests the effect on training. All nodes run on this machine; see `machines`.
"""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.local import stack
from cluster.progress import EpochEvent, ProgressEvent, StepEvent
from serving.deploy import rollout, serve_client
from tailorbird.config.serving import ServingConfig
from tests.integration.cluster.job_on_nodes import NUM_TRIALS
from tests.integration.load import Responses, under_load
from tests.integration.machines import (
    Machine,
    Machines,
    joined,
    kill,
    redis_server,
    report_figure,
    wait,
)
from tests.integration.serving.classification.service import TEXTS, Service
from tests.integration.small import REGISTRY, ROOT, logged_rows
from tests.integration.training.one_training import NUM_EPOCHS

pytestmark = pytest.mark.long

EVENTS = {kind.__name__: kind for kind in (EpochEvent, StepEvent)}
NAME = "serving-on-nodes"
TASK_URI, LOG = f"s3://models/{NAME}", f"s3://lake/{NAME}"
BUSY = {429, 503}
SETTLED_S = 3.0
MENDED_S = 180.0


def test_a_job_completes_if_a_node_is_lost_during_its_sweep(small_data: str) -> None:
    name = "job-on-nodes"
    assert small_data == "s3://lake/small"
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.cluster.job_on_nodes", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    report = json.loads(process.stdout.splitlines()[-1])
    for figure in ("retaken_s", "ended_s"):
        report_figure(figure, report[figure])
    assert report["n"] == 400  # every test row was evaluated
    assert len(report["trials"]) == NUM_TRIALS
    assert all(trial["result"] and not trial["failure"] for trial in report["trials"])
    assert report["taken"] == {
        trial["trial"]: 1 + (trial["trial"] == report["again"]) for trial in report["trials"]
    }
    assert (
        min(epoch for trial, epoch in report["trained"] if trial == report["again"]) >= 1
    )  # it resumed


class Site:
    """A head node with its state in Redis, two worker nodes with one CPU each, and a service with a
    replica on each."""

    def __init__(self, machines: Machines, *, redis: str, password: str) -> None:
        self.machines, self._redis, self._password = machines, redis, password
        self.head = self.start_head("head")
        self.left, self.right = (
            machines.worker(name, "--num-cpus=1") for name in ("left", "right")
        )
        for node in (self.left, self.right):
            wait(lambda node=node: joined(node), of=node)  # type: ignore[misc]

    def start_head(self, name: str) -> Machine:
        """Start a head node with a new disk, so that it reads the state of the cluster from
        Redis."""
        return self.machines.head(
            name, f"--redis-password={self._password}", RAY_REDIS_ADDRESS=self._redis
        )

    def is_whole(self) -> bool:
        """Return True if exactly two replicas run, one on each worker node."""
        listed = self.replicas()
        alone = [
            listed & {process.pid for process in stack.family(node.process.pid)}
            for node in (self.left, self.right)
        ]
        return len(listed) == 2 and all(len(pids) == 1 for pids in alone)

    def replicas(self) -> set[int]:
        """Return the process ids of the running replicas from Serve."""
        replicas = serve_client.replicas_of(NAME)
        return {
            replica.pid
            for replica in replicas
            if replica.state == "RUNNING" and replica.pid is not None
        }


@pytest.fixture(scope="module")
def site(stack: stack.StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert stack.s3_endpoint
    folder = tmp_path_factory.mktemp("site")
    # KubeRay's setting for clusters with Redis: the time for which nodes wait for a new head.
    machines = Machines(folder, environment={"RAY_gcs_rpc_server_reconnect_timeout_s": "600"})
    password = secrets.token_hex(16)
    try:
        with (
            redis_server(folder / "redis", port=machines.redis_port, password=password) as address,
            machines.used(),
        ):
            site = Site(machines, redis=address, password=password)
            (folder / "versions").mkdir()
            service = Service(TASK_URI, folder / "versions")
            config = ServingConfig(
                autoscaling={"min_replicas": 2, "max_replicas": 2}, request_log=LOG
            )
            rollout.deploy(config, task_uri=TASK_URI, version=service.first)
            wait(site.is_whole, within_s=MENDED_S)
            yield site
            machines.stop()
    finally:
        machines.stop()


def settled(responses: Responses) -> bool:
    """Return True if all requests of the last seconds were answered."""
    return set(responses.statuses(since=time.monotonic() - SETTLED_S)) == {200}


def logged() -> set[str]:
    """Return the clients' request ids in the log."""
    return {row["x_request_id"] for row in logged_rows(LOG)}


def test_a_service_survives_a_lost_node_and_no_row_of_its_log_is_lost(site: Site) -> None:
    with under_load(site.head.proxy_url, TEXTS, clients=4) as responses:
        wait(lambda: settled(responses))  # HAProxy may not have the replicas yet
        at = time.monotonic()
        kill(site.right)
        wait(lambda: len(site.replicas()) == 1, within_s=MENDED_S)
        report_figure("missed_s", time.monotonic() - at)
        wait(lambda: settled(responses), within_s=MENDED_S)
        at = time.monotonic()
        site.right = site.machines.worker("right", "--num-cpus=1")
        wait(site.is_whole, of=site.right, within_s=MENDED_S)
        report_figure("back_s", time.monotonic() - at)
        time.sleep(SETTLED_S)
        assert settled(responses)
    report_figure("statuses", dict(responses.statuses()))
    report_figure("without_answer_s", responses.without_answer_s())
    assert set(responses.statuses()) <= {200, *BUSY}, (responses.statuses(), responses.faults)
    report_figure("logged_s", wait(lambda: responses.ids(200) <= logged(), within_s=MENDED_S))


def test_a_lost_head_ends_training_but_loses_no_answer_and_no_checkpoint(
    site: Site, small_data: str, tmp_path: Path
) -> None:
    third = site.machines.worker("third", "--num-cpus=1")
    uri = f"{REGISTRY}/training-without-head"
    driver, events = training(small_data, uri, log=tmp_path / "first.log")
    replicas = site.replicas()
    with (
        under_load(site.left.proxy_url, TEXTS, clients=2) as at_left,
        under_load(site.head.proxy_url, TEXTS, clients=2) as at_head,
    ):
        wait(lambda: settled(at_left) and settled(at_head))
        wait(lambda: second_epoch(driver, events()), of=third, within_s=MENDED_S)
        at = time.monotonic()
        kill(site.head)
        left = driver.wait(timeout=MENDED_S)
        report_figure("driver_s", time.monotonic() - at)
        alone = at_left.statuses(since=at)
        at = time.monotonic()
        site.head = site.start_head("head-again")
        report_figure("head_s", time.monotonic() - at)
        wait(lambda: settled(at_head), of=site.head, within_s=MENDED_S)
        wait(site.is_whole, within_s=MENDED_S)
        report_figure("whole_s", time.monotonic() - at)
        time.sleep(SETTLED_S)
    report_figure(
        "at the left node", (dict(alone), dict(at_left.statuses()), at_left.without_answer_s())
    )
    report_figure("at the head", (dict(at_head.statuses()), at_head.without_answer_s()))
    at = time.monotonic()
    again, events_again = training(small_data, uri, log=tmp_path / "again.log")
    assert again.wait(timeout=300) == 0, (tmp_path / "again.log").read_text()[-3000:]
    report_figure("trained_s", time.monotonic() - at)
    first, then = (
        [event.epoch for event in log if isinstance(event, EpochEvent)]
        for log in (events(), events_again())
    )
    report_figure("epochs", (first, then))
    assert left != 0
    assert then == list(range(then[0], NUM_EPOCHS))
    assert 1 <= then[0] <= len(first)  # checkpointed epochs are not trained again
    assert set(alone) == {200}  # without a head node
    assert set(at_left.statuses()) <= {200, *BUSY}, (at_left.statuses(), at_left.faults)
    assert site.replicas() == replicas  # the same replicas, not restarted
    wait(lambda: at_left.ids(200) | at_head.ids(200) <= logged(), within_s=MENDED_S)


def training(
    data: str, uri: str, *, log: Path
) -> tuple["subprocess.Popen[bytes]", Callable[[], list[ProgressEvent]]]:
    """Start `one_training`; return its process and a function that returns its events so far."""
    command = [sys.executable, "-m", "tests.integration.training.one_training", data, uri]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)

    def events() -> list[ProgressEvent]:
        rows = [
            json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"event"')
        ]
        return [EVENTS[row.pop("event")](**row) for row in rows]

    return process, events


def second_epoch(driver: "subprocess.Popen[bytes]", events: list[ProgressEvent]) -> bool:
    """Return True if the first epoch is checkpointed and the second trains."""
    assert driver.poll() is None
    return any(isinstance(event, StepEvent) and event.epoch == 1 for event in events)
