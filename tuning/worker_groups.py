"""The worker groups of a sweep. Each is a Ray Train run that trains trials until none is left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError

from cluster.progress import NoteEvent
from cluster.remote import this_node
from cluster.resources import live_nodes, worker_resources, workers_that_fit
from tailorbird.config.training import TrainingConfig
from training.errors import describe_failure, out_of_memory
from training.trainer import build_torch_trainer, placement_strategy, stop_trainings
from tuning.trial_broker import WorkerGroupJob

MAX_HALVINGS = 16  # of the tokens of a micro-batch, in a sweep

GROUP_HELPERS_BYTES = 880 << 20
"""Memory of a group's processes on the driver's node: Ray Train's controller (273 MiB) and its four
helpers (117 MiB each), and Ray Tune's actor of the trial (134 MiB). Proportional set sizes of two
groups with Ray 2.60."""


def num_groups_that_fit(training: TrainingConfig) -> int:
    """Return the number of worker groups that fit in the cluster, at least 1, since an autoscaler
    may add nodes.

    The nodes limit the workers, and the memory of this node limits the controllers and helpers of
    the groups.
    """
    nodes = live_nodes()
    totals = [node.total for node in nodes]
    worker = worker_resources(training)
    if placement_strategy(training, nodes=totals) == "STRICT_PACK":
        # all workers of a group on one node
        by_workers = sum(node.num_workers(worker) // training.max_workers for node in totals)
    else:
        by_workers = workers_that_fit(totals, worker) // training.max_workers
    memory = next((node.memory_bytes for node in nodes if node.id == this_node()), 0)
    by_memory = memory // GROUP_HELPERS_BYTES if memory else by_workers
    return max(1, min(by_workers, by_memory))


@contextmanager
def run_worker_groups(job: WorkerGroupJob, *, num_groups: int) -> Iterator[list[str]]:
    """Run worker groups until the block ends; yield a list to which the error of each failed group
    is appended.

    A thread of this process waits for each group. A process for each group would need another 270
    MiB.
    """
    errors: list[str] = []
    running = {f"group-{number}" for number in range(num_groups)}
    lock = threading.Lock()

    def run(name: str) -> None:
        error = _run_group(replace(job, group=name))
        with lock:
            running.remove(name)
            last = not running
        if error is not None:
            errors.append(error)
            # If the sweep is interrupted, the broker is dead.
            with suppress(ray.exceptions.RayActorError):
                ray.get(job.broker.group_lost.remote(name, error, last=last))

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in sorted(running)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    except BaseException:
        ray.kill(job.broker)  # interrupted trials must not be recorded as finished
        stop_trainings(threads)
        raise
    ray.get(job.broker.close.remote())
    for thread in threads:
        # a group that still waits for CPUs gets them when other groups end, and then ends too
        thread.join()


class RequeueOnFailure(UserCallback):  # type: ignore[misc]
    """Callback that requeues a group's trial when workers of the group fail.

    The group restarts only when enough CPUs are free. This may never happen: its node may be lost
    while the other groups keep their CPUs and wait for a trial.
    """

    def __init__(self, job: WorkerGroupJob) -> None:
        self._job = job

    def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
        reason = describe_failure(WorkerGroupError("", worker_exceptions), uri=self._job.uri)
        error = out_of_memory(worker_exceptions.values())
        batch_tokens = None
        if error is not None:
            batch_tokens = error.batch_tokens
            if self._job.events is not None:
                self._job.events.put.remote(NoteEvent(f"{self._job.group}: {error}"))
        self._job.broker.requeue.remote(self._job.group, reason, batch_tokens=batch_tokens)


def _run_group(job: WorkerGroupJob) -> str | None:
    """Run a group until it ends, and return its error or None.

    Ray Train counts the failures of all of the group's trials, so it may fail once more for each,
    and once for each halving of the micro-batches.
    """

    def work() -> None:
        from tuning.worker import train_trials  # in workers only, because it imports DeepSpeed

        train_trials(job)

    try:
        build_torch_trainer(
            work,
            config=job.training,
            uri=f"{job.uri}/groups/{job.group}",
            callbacks=[RequeueOnFailure(job)],
            more_failures=job.num_trials + MAX_HALVINGS,
        ).fit()
    except Exception as error:
        return f"worker group failed: {describe_failure(error, uri=job.uri)}"
    return None
