"""Run functions as Ray tasks."""

import os
import time
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from cluster.progress import ProgressReporter
from cluster.resources import Resources

P = ParamSpec("P")
R = TypeVar("R")

LOCAL = "local"  # as RAY_ADDRESS: `ray.init` starts a Ray of this process's own on this machine
RELEASE_TIMEOUT_S = 2.0


def run_remote(function: Callable[P, R], *, resources: Resources) -> Callable[P, R]:
    """Return a function that runs `function` as a Ray task with these resources, and waits for its value.

    An error of the task is raised as itself.
    """
    import ray

    task = ray.remote(function)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        available = ray.cluster_resources() if os.environ.get("RAY_ADDRESS") == LOCAL else None
        try:
            value: R = ray.get(task.options(**task_options(resources, available=available)).remote(*args, **kwargs))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the error itself: its dual's text is the remote traceback
        return value

    return call


def task_options(resources: Resources, *, available: Mapping[str, float] | None) -> dict[str, float]:
    """Return Ray's options for a task with these resources, but no more than a cluster of fixed size has.

    `available` is None if nodes may join the cluster. A Ray in a pod of its own has one node, and a task that requests
    more would wait forever.
    """
    amounts = {"num_cpus": ("CPU", resources.cpus), "num_gpus": ("GPU", resources.gpus)}
    return {
        option: float(amount if available is None else min(amount, available.get(name, 0.0)))
        for option, (name, amount) in amounts.items()
    }


def this_node_selector() -> dict[str, str]:
    """Return a label selector that keeps an actor without a CPU on this process's node.

    Ray places such an actor on any node, and the loss of that node would end work that did not run there.
    """
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def note_shortage(num_cpus: int, *, what: str, progress: ProgressReporter) -> None:
    """Report if `what` has to wait for CPUs; those of a task that just ended are free a moment later."""
    import ray

    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while (free := ray.available_resources().get("CPU", 0.0)) < num_cpus and time.monotonic() < deadline:
        time.sleep(0.1)
    if free < num_cpus:
        text = f"{what} needs {num_cpus} CPUs and {free:g} are free: it waits for a service or job to end, or for nodes"
        progress.note(text)
