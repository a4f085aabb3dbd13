"""The whole job on three nodes, of which one is lost while it sweeps, as a process of its own:
`python -m tests.integration.cluster.job_on_nodes NAME`.

S3 is the environment's, NAME the recipe's; the last line of the output is what became of it, as JSON.
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
ASKED = (
    "training.method=lora",
    "training.num_workers=1",  # a group on each node but the head
    "training.batch_size=8",
    f"training.epochs={NUM_EPOCHS}",
    "training.checkpoint_interval_s=2",
    f"tuning.num_trials={NUM_TRIALS}",
    f"tuning.grace_epochs={NUM_EPOCHS}",
)


def journal(task_uri: str) -> tuple[TrialRecord, ...]:
    """Return the trials of the task's sweep; none before it has started."""
    for path in written(task_uri, mark="/journal.json"):
        try:
            return SweepJournal.model_validate(storage.read_json(f"s3://{path}")).trials
        except s3.StorageError:  # read in parts, while the sweep wrote it anew
            continue
    return ()


def past_first_epoch(trials: Sequence[TrialRecord]) -> list[str]:
    """Return the names of the unfinished trials that can resume after their first epoch."""
    return [trial.trial for trial in trials if not trial.result and epoch_kept(trial) >= 1]


def epoch_kept(trial: TrialRecord) -> int:
    """Return the epoch in which it would resume; 0 without a checkpoint, whose name has epoch, step and workers."""
    _, _, name = (trial.checkpoint or "").rpartition("/")
    return int(name.partition("-")[0] or 0)


def taken(recorder: Watched) -> Counter[str]:
    """How often each trial was taken by a group."""
    return Counter(event.trial for event in recorder.of_kind(TrialEvent) if event.status == "training")


def lose_a_node(cluster: Cluster, recorder: Watched, *, task_uri: str) -> dict[str, Any]:
    """Once each group is past a trial's first epoch, one's node is gone; what was known then, and how it went on."""
    nodes = {node.node_id: node for node in cluster.worker_nodes}
    recorder.until(lambda: len(past_first_epoch(journal(task_uri))) == NUM_NODES - 1)
    lost = next(node for node in workers("ALIVE") if node in nodes)
    before, num_events = journal(task_uri), len(recorder.events)
    at = time.monotonic()
    cluster.remove_node(nodes[lost], allow_graceful=False)
    recorder.until(lambda: max(taken(recorder).values()) > 1)
    again = next(name for name, times in taken(recorder).items() if times > 1)
    retaken_s = time.monotonic() - at
    recorder.until(recorder.over.is_set)
    trained = [(event.trial, event.epoch) for event in recorder.events[num_events:] if isinstance(event, EpochEvent)]
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
        caches = [{"TAILORBIRD_CACHE": f"{folder}/{number}"} for number in range(NUM_NODES)]  # no disk is shared
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "env_vars": caches[0]})
        try:
            for cache in caches[1:]:
                cluster.add_node(num_cpus=1, env_vars=cache)
            os.environ["RAY_ADDRESS"] = cluster.address
            ray.init(address=cluster.address, log_to_driver=False)
            recipe = small_recipe(Path(folder), name=name, data=DATA, overrides=ASKED)
            recorder = Watched()
            recorder.start(lambda: run_pipeline(recipe, progress=recorder))
            result = lose_a_node(cluster, recorder, task_uri=f"{REGISTRY}/{name}")
            result["taken"] = dict(taken(recorder))
            result["trials"] = [trial.model_dump(mode="json") for trial in journal(f"{REGISTRY}/{name}")]
            result["outcome"], result["n"] = recorder.value.verdict.outcome, recorder.value.verdict.n
            print(json.dumps(result), flush=True)
        finally:
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
