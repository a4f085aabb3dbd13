"""Run functions as Ray tasks."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.connection import LOCAL
from tailorbird.config.training import TrainingConfig

SETTLED_S = 2.0


def remotely(function: Callable[..., Any], training: TrainingConfig) -> Callable[..., Any]:
    """The function as a Ray task on a node with a worker's CPUs and GPUs; a call waits for its value."""
    import ray

    task = ray.remote(function)

    def call(*arguments: Any, **named: Any) -> Any:
        has = ray.cluster_resources() if os.environ.get("RAY_ADDRESS") == LOCAL else None
        try:
            return ray.get(task.options(**room_asked(training, has=has)).remote(*arguments, **named))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the error itself: its dual's text is the remote traceback

    return call


def room_asked(training: TrainingConfig, *, has: Mapping[str, float] | None) -> dict[str, float]:
    """CPUs and GPUs that a task asks for: a worker's, but no more than a Ray `has` that will never have more.

    None stands for a Ray to which nodes may come. A Ray in a pod of its own has one node, and a task that asks for more
    would wait for ever.
    """
    asked = {"num_cpus": ("CPU", training.cpus_per_worker), "num_gpus": ("GPU", training.gpus_per_worker)}
    return {key: float(most if has is None else min(most, has.get(name, 0.0))) for key, (name, most) in asked.items()}


def on_this_node() -> dict[str, str]:
    """A label selector for what this process cannot do without: it goes with this node, and with no other.

    Ray puts what needs no CPU on any node, and the loss of that one would end work that it had no part in.
    """
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def note_shortage(num_cpus: int, *, what: str, show: Callable[[dict[str, Any]], None]) -> None:
    """Says so where `what` will have to wait for CPUs; those of a task that just ended are free a moment later."""
    import ray

    deadline = time.monotonic() + SETTLED_S
    while (free := ray.available_resources().get("CPU", 0.0)) < num_cpus and time.monotonic() < deadline:
        time.sleep(0.1)
    if free < num_cpus:
        text = f"{what} needs {num_cpus} CPUs and {free:g} are free: it waits for a service or job to end, or for nodes"
        show({"event": "note", "text": text})
