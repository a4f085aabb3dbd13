"""Run the pipeline on three Ray nodes and remove one during the sweep, in a separate process.

    python -m tests.integration.cluster.job_on_nodes NAME

NAME is the name of the recipe. The S3 server is that of the environment. The last line of the
output is the result as JSON.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.progress import EpochEvent, TrialEvent
from tailorbird import storage
from tailorbird.pipeline.run import run_pipeline
from tailorbird.storage import s3
from tests.integration.small import REGISTRY, small_recipe, written
from tests.integration.training.nodes import DATA, LIMIT_S, Watched, too_long, workers
from tuning.trial_record import SweepJournal, TrialRecord

NUM_NODES, NUM_TRIALS, NUM_EPOCHS = 3, 3, 3
OVERRIDES = (
    "training.method=lora",
    "training.num_workers=1",  # one group on each node except the head
    "training.batch_size=8",
    f"training.epochs={NUM_EPOCHS}",
    "training.checkpoint_interval_s=2",
    f"tuning.num_trials={NUM_TRIALS}",
    f"tuning.grace_epochs={NUM_EPOCHS}",
)


def journal(task_uri: str) -> tuple[TrialRecord, ...]:
    """Return the trials of the task's sweep, or an empty tuple before its start."""
    for path in written(task_uri, mark="/journal.json"):
        try:
            return SweepJournal.model_validate(storage.read_json(f"s3://{path}")).trials
        except s3.StorageError:  # the sweep replaced the file during the read
            continue
    return ()


def past_first_epoch(trials: Sequence[TrialRecord]) -> list[str]:
    """Return the names of the unfinished trials that can resume after their first epoch."""
    return [trial.trial for trial in trials if not trial.result and checkpoint_epoch(trial) >= 1]


def checkpoint_epoch(trial: TrialRecord) -> int:
    """Return the epoch in which the trial would resume, from the checkpoint's name
    `epoch-step-workers`, or 0."""
    _, _, name = (trial.checkpoint or "").rpartition("/")
    return int(name.partition("-")[0] or 0)


def num_starts(recorder: Watched) -> Counter[str]:
    """Return how often each trial was started by a group."""
    return Counter(
        event.trial for event in recorder.of_kind(TrialEvent) if event.status == "training"
    )


def lose_a_node(cluster: Cluster, recorder: Watched, *, task_uri: str) -> dict[str, Any]:
    """Remove a group's node after each group has finished an epoch. Return the state before it and
    the continuation."""
    nodes = {node.node_id: node for node in cluster.worker_nodes}
    recorder.until(lambda: len(past_first_epoch(journal(task_uri))) == NUM_NODES - 1)
    lost = next(node for node in workers("ALIVE") if node in nodes)
    before, num_events = journal(task_uri), len(recorder.events)
    at = time.monotonic()
    cluster.remove_node(nodes[lost], allow_graceful=False)
    recorder.until(lambda: max(num_starts(recorder).values()) > 1)
    again = next(name for name, times in num_starts(recorder).items() if times > 1)
    retaken_s = time.monotonic() - at
    recorder.until(recorder.over.is_set)
    trained = [
        (event.trial, event.epoch)
        for event in recorder.events[num_events:]
        if isinstance(event, EpochEvent)
    ]
    return {
        "before": {trial.trial: len(trial.epochs) for trial in before},
        "again": again,
        "retaken_s": round(retaken_s, 1),
        "ended_s": round(time.monotonic() - at, 1),
        "trained": trained,
    }


def main(name: str) -> None:
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(variable, None)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_S)
    with tempfile.TemporaryDirectory() as folder:
        # Separate caches, as if each node had its own disk.
        caches = [{"TAILORBIRD_CACHE": f"{folder}/{number}"} for number in range(NUM_NODES)]
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "env_vars": caches[0]}
        )
        try:
            for cache in caches[1:]:
                cluster.add_node(num_cpus=1, env_vars=cache)
            os.environ["RAY_ADDRESS"] = cluster.address
            ray.init(address=cluster.address, log_to_driver=False)
            recipe = small_recipe(Path(folder), name=name, data=DATA, overrides=OVERRIDES)
            recorder = Watched()
            recorder.start(lambda: run_pipeline(recipe, progress=recorder))
            result = lose_a_node(cluster, recorder, task_uri=f"{REGISTRY}/{name}")
            result["taken"] = dict(num_starts(recorder))
            result["trials"] = [
                trial.model_dump(mode="json") for trial in journal(f"{REGISTRY}/{name}")
            ]
            result["outcome"], result["n"] = (
                recorder.value.verdict.outcome,
                recorder.value.verdict.n,
            )
            print(json.dumps(result), flush=True)
        finally:
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
