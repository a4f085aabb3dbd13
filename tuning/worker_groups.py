"""The worker groups of a sweep. Each is a Ray Train run that trains trials until none is left."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError

from cluster.remote import this_node
from cluster.resources import live_nodes, worker_resources, workers_that_fit
from tailorbird.config.training import TrainingConfig
from training.errors import RepeatedFailure, describe_failure, restart_is_expected
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
    """Callback that requeues a group's trial when workers of the group fail, and ends a group that
    fails repeatedly.

    The group restarts only when enough CPUs are free. This may never happen: its node may be lost
    while the other groups keep their CPUs and wait for a trial. Ray Train does not restart after an
    error of a callback.
    """

    def __init__(self, broker: Any, group: str, *, uri: str, max_failures: int) -> None:
        self._broker = broker
        self._group = group
        self._uri = uri
        self._max_failures = max_failures

    def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
        reason = describe_failure(WorkerGroupError("", worker_exceptions), uri=self._uri)
        self._broker.requeue.remote(self._group, reason)
        if restart_is_expected(worker_exceptions.values()):
            return
        reasons = ray.get(self._broker.count_failure.remote(self._group, reason))
        message = repeated_failure(reasons, max_failures=self._max_failures)
        if message is not None:
            raise RepeatedFailure(message)


def repeated_failure(reasons: Sequence[str], *, max_failures: int) -> str | None:
    """Return the message of a group that must end after these failures, or None if it must restart.

    `reasons` are the failures since the group finished a trial, without those after which a restart
    is expected. A fault that the trials do not cause, such as a broken node or a missing library,
    otherwise fails one trial after another.
    """
    if len(reasons) <= max_failures:
        return None
    times = "once" if len(reasons) == 1 else f"{len(reasons)} times"
    return (
        f"its workers failed {times} without a finished trial: "
        f"{'; '.join(dict.fromkeys(reasons))}; remove the cause and run again, which resumes the "
        f"sweep (training.max_failures is {max_failures})"
    )


def _run_group(job: WorkerGroupJob) -> str | None:
    """Run a group until it ends, and return its error or None.

    A trial that exceeds the memory of its GPU fails a group of `max_workers` once for each halving
    of the micro-batches of the sweep, and once at the end, after which the broker does not assign
    it again. Ray Train counts all failures of the group, so their limit is higher by these numbers.
    The callback limits the other failures.
    """

    def work() -> None:
        from tuning.worker import train_trials  # in workers only, because it imports DeepSpeed

        train_trials(job)

    training = job.training
    callbacks = [
        RequeueOnFailure(job.broker, job.group, uri=job.uri, max_failures=training.max_failures)
    ]
    uri = f"{job.uri}/groups/{job.group}"
    try:
        more = job.num_trials + MAX_HALVINGS
        build_torch_trainer(
            work, config=training, uri=uri, callbacks=callbacks, more_failures=more
        ).fit()
    except Exception as error:
        return f"worker group failed: {describe_failure(error, uri=job.uri)}"
    return None
