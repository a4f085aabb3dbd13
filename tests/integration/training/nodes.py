"""Train on a cluster whose nodes change: `python -m tests.integration.training.nodes KIND`.

KIND is `drained` or `elastic`. The environment configures S3. The last line of the
output is a report as JSON.
"""

import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
import ray.train
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from cluster.event_queue import forward_events
from cluster.progress import EpochEvent, ProgressEvent, StepEvent
from tailorbird.config.training import TrainingConfig
from tests.integration.small import REGISTRY
from tests.integration.training.test_training import training_task
from tests.progress import ProgressRecorder
from training.trainer import finetune

DATA = "s3://lake/small"
NUM_ROWS = 320
TICK_S = 0.5
NOTICE_MS = 30_000
RESIZE_EVERY_S, START_TIMEOUT_S = 10, 30
"""The defaults are minutes, and the test would wait for them at each change."""
LIMIT_S = 560
"""Less than pytest's timeout, so that the nodes are always stopped."""


class Watched(ProgressRecorder):
    """Recorder of the events of work in a thread. The main thread, which must add the nodes, waits
    for events."""

    def __init__(self) -> None:
        super().__init__()
        self.group_sizes: list[int] = []
        self.over = threading.Event()
        self.failure: BaseException | None = None
        self.value: Any = None

    def start(self, work: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self.value = work()
            except BaseException as error:  # raised again in `until`
                self.failure = error
            self.over.set()

        threading.Thread(target=run, daemon=True).start()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds`; raise the work's error, or AssertionError if the work ended
        before."""
        while not holds():
            ended = self.over.wait(TICK_S)
            if self.failure is not None:
                raise self.failure
            assert not ended or holds(), "the work ended before"

    def until_event(self, matches: Callable[[ProgressEvent], bool]) -> None:
        """Wait for a new event that matches."""
        start = len(self.events)
        self.until(lambda: any(matches(event) for event in self.events[start:]))


def too_long(*_: Any) -> None:
    raise AssertionError(f"the training has not ended after {LIMIT_S} s")


def workers(*states: str) -> list[str]:
    """Return the node of each worker in these states from GCS, since the state API needs a
    dashboard."""
    actors = ray._private.state.actors().values()
    running = [
        actor
        for actor in actors
        if actor["ActorClassName"] == "RayTrainWorker" and actor["State"] in states
    ]
    return [actor["Address"]["NodeID"] for actor in running]


def steps(recorder: ProgressRecorder, *, epoch: int) -> list[int]:
    """Return the numbers of an epoch's steps that were reported."""
    return [event.step for event in recorder.of_kind(StepEvent) if event.epoch == epoch]


def second_epoch(event: ProgressEvent) -> bool:
    return bool(isinstance(event, StepEvent) and event.epoch == 1 and event.step >= 2)


def drained(cluster: Cluster, recorder: Watched) -> None:
    """Three nodes for two workers; a worker's node is drained with 30 s notice, as a spot
    instance."""
    nodes = {cluster.add_node(num_cpus=1).node_id for _ in range(2)}
    recorder.until_event(second_epoch)
    drain = ray._private.worker.global_worker.gcs_client.drain_node
    node, deadline = (
        next(node for node in workers("ALIVE") if node in nodes),
        int(time.time() * 1000) + NOTICE_MS,
    )
    accepted, reason = drain(
        node, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "taken back", deadline
    )
    assert accepted, reason
    recorder.until(recorder.over.is_set)


def elastic(cluster: Cluster, recorder: Watched) -> None:
    """One node, then two, then one again; training resumes each time."""
    recorder.until_event(second_epoch)
    recorder.group_sizes.append(len(workers("ALIVE")))
    node = cluster.add_node(num_cpus=1)
    for size in (2, 1):
        recorder.until(lambda size=size: len(workers("ALIVE")) == size)  # type: ignore[misc]
        recorder.until_event(lambda event: isinstance(event, EpochEvent))
        recorder.group_sizes.append(len(workers("ALIVE")))
        if size == 2:
            cluster.remove_node(node, allow_graceful=False)


KINDS: dict[str, tuple[Callable[[Cluster, Watched], None], dict[str, Any]]] = {
    "drained": (drained, {"epochs": 2, "num_workers": 2}),
    "elastic": (elastic, {"epochs": 100, "num_workers": [1, 2]}),
}


def main(kind: str) -> None:
    change, fields = KINDS[kind]
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_TIMEOUT_S)
    values = {
        "method": "lora",
        "batch_size": 8,
        "learning_rate": 1e-3,
    }
    config = TrainingConfig.model_validate(values | fields)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_S)
    ray.train.ScalingConfig = partial(
        ray.train.ScalingConfig, elastic_resize_monitor_interval_s=RESIZE_EVERY_S
    )
    cluster, recorder = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}), Watched()
    try:
        os.environ |= {
            "RAY_ADDRESS": cluster.address,
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        }
        ray.init(address=cluster.address, log_to_driver=False)
        with forward_events(recorder) as events:
            task, uri = (
                training_task(DATA, num_rows=NUM_ROWS),
                f"{REGISTRY}/training-{uuid.uuid4().hex}",
            )
            recorder.start(lambda: finetune(config, task=task, uri=uri, events=events))
            change(cluster, recorder)
            started = len(workers("ALIVE", "DEAD", "RESTARTING", "PENDING_CREATION"))
        report = {
            "ends": [
                (event.epoch, event.loss, event.score) for event in recorder.of_kind(EpochEvent)
            ],
            "group_sizes": recorder.group_sizes,
            "num_workers": started,
            "steps": steps(recorder, epoch=1),
        }
        print(json.dumps(report), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
