"""The worker groups of a sweep. Each is a Ray Train run that trains trials until none is left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError

from cluster.remote import this_node_selector
from tailorbird.config.training import TrainingConfig
from training.errors import describe_failure
from training.trainer import build_torch_trainer
from tuning.trial_broker import WorkerGroupJob


def num_groups_that_fit(training: TrainingConfig) -> int:
    """Return the number of worker groups that fit in the cluster, at least 1, since an autoscaler may add nodes."""
    total = ray.cluster_resources()
    by_cpu = int(total.get("CPU", 0)) // (training.max_workers * training.cpus_per_worker)
    if training.gpus_per_worker:
        return max(1, min(by_cpu, int(total.get("GPU", 0)) // (training.max_workers * training.gpus_per_worker)))
    return max(1, by_cpu)


@contextmanager
def run_worker_groups(job: WorkerGroupJob, *, num_groups: int) -> Iterator[list[str]]:
    """Run worker groups until the block ends; yield a list to which the error of each failed group is appended."""
    start = ray.remote(num_cpus=0, max_retries=0, label_selector=this_node_selector())(_run_group)
    names = [f"group-{number}" for number in range(num_groups)]
    running = {start.remote(replace(job, group=name)): name for name in names}
    errors: list[str] = []

    def watch() -> None:
        unfinished = list(running)
        while unfinished:
            (ended,), unfinished = ray.wait(unfinished)
            try:
                error: str | None = ray.get(ended)
            except ray.exceptions.RayError as died:
                error = f"a worker group's process died: {died}"
            if error is not None:
                errors.append(error)
                with suppress(ray.exceptions.RayActorError):  # if the sweep is interrupted, the broker is dead
                    ray.get(job.broker.group_lost.remote(running[ended], error, last=not unfinished))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield errors
    except BaseException:
        ray.kill(job.broker)  # interrupted trials must not be recorded as finished
        raise
    ray.get(job.broker.close.remote())
    watcher.join()  # a group that still waits for CPUs gets them when other groups end, and then ends too


class RequeueOnFailure(UserCallback):  # type: ignore[misc]
    """Callback that requeues a group's trial when workers of the group fail.

    The group restarts only when enough CPUs are free. This may never happen: its node may be lost while the other
    groups keep their CPUs and wait for a trial.
    """

    def __init__(self, broker: Any, group: str, *, uri: str) -> None:
        self._broker, self._group, self._uri = broker, group, uri

    def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
        reason = describe_failure(WorkerGroupError("", worker_exceptions), uri=self._uri)
        self._broker.requeue.remote(self._group, reason)


def _run_group(job: WorkerGroupJob) -> str | None:
    """Run a group until it ends, and return its error or None."""

    def work() -> None:
        from tuning.worker import train_trials  # in workers only, because it imports DeepSpeed

        train_trials(job)

    training = job.training
    callbacks = [RequeueOnFailure(job.broker, job.group, uri=job.uri)]
    uri = f"{job.uri}/groups/{job.group}"
    trainer = build_torch_trainer(work, config=training, uri=uri, callbacks=callbacks)
    try:
        trainer.fit()
    except Exception as error:
        return f"worker group failed {training.max_failures + 1} times: {describe_failure(error, uri=job.uri)}"
    return None
