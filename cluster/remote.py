"""Run functions as Ray tasks."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from cluster.progress import SILENT, ProgressReporter, current_progress, reporting_to
from cluster.resources import Resources, gpu_visibility, held_by, holders_or_none, is_waiting

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# value of RAY_ADDRESS with which `ray.init` starts Ray on this machine for this process only
LOCAL = "local"
RELEASE_TIMEOUT_S = 2.0
WAIT_INTERVAL_S = 2.0  # seconds between two requests for the state of a task that has not ended


def run_remote(
    function: Callable[P, R], *, resources: Resources, progress: ProgressReporter = SILENT
) -> Callable[P, R]:
    """Return a function that runs `function` as a Ray task with these resources and waits for its
    result.

    It raises an error of the task with its original type. It reports to `progress`, or by default
    to this process's `current_progress`, why the task does not start. If `progress` is given, it
    must be that of an event queue, and is the `current_progress` of the task. The process of a task
    with GPUs ends with the task, because it would keep memory of the GPU; Ray does this by default
    only if the decorator, not `options`, sets `num_gpus`.
    """
    import ray

    in_task = function
    if progress is not SILENT:
        in_task = reporting_function(function, progress)
    if resources.gpus:
        task = ray.remote(max_calls=1)(in_task)
    else:
        task = ray.remote(in_task)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        here = current_progress()
        try:
            result = task.options(**task_options(resources)).remote(*args, **kwargs)
            report_waiting(
                result, resources=resources, progress=here if progress is SILENT else progress
            )
            value: R = ray.get(result)
        except ray.exceptions.RayTaskError as error:
            # the original error; the message of a RayTaskError is the remote traceback
            raise error.cause from None
        return value

    return call


def map_remote(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield the function's result of each item in order, as `map`, from Ray tasks with one CPU
    each.

    What the function holds is stored once. A single item needs no task. Raises an error of a task
    with its original type.
    """
    import ray

    if len(items) < 2:
        yield from map(function, items)
        return
    function_ref = ray.put(function)
    task = ray.remote(num_cpus=1)(_call)
    results = deque(task.remote(function_ref, item) for item in items)
    try:
        while results:
            yield ray.get(results.popleft())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as in `run_remote`
    finally:
        for result in results:
            ray.cancel(result)


def _call(function: Callable[[T], R], item: T) -> R:
    return function(item)


def reporting_function(function: Callable[P, R], progress: ProgressReporter) -> Callable[P, R]:
    """Return `function` with `progress` as the result of `current_progress`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with reporting_to(progress):
            return function(*args, **kwargs)

    return call


def report_waiting(result: Any, *, resources: Resources, progress: ProgressReporter) -> None:
    """Wait until the task of `result` has started or ended, and report what it waits for when this
    changes."""
    import ray

    if progress is SILENT:
        return
    reported = None
    while True:
        ended, _ = ray.wait([result], timeout=WAIT_INTERVAL_S, fetch_local=False)
        if ended or not is_waiting(result):
            break
        text = f"waiting for {resources.text()}, {held_by(holders_or_none())}"
        if text != reported:
            reported = text
            progress.activity(text)
    if reported is not None:
        progress.activity("the task has started")


def task_options(resources: Resources) -> dict[str, Any]:
    """Return Ray's options for a task with these resources. Without a GPU, it sees none.

    A Ray that this process has started has a fixed size, and a task that requests more would wait
    forever, so the task gets at most what it has.
    """
    import ray

    amounts = {"CPU": resources.cpus, "GPU": resources.gpus}
    if os.environ.get("RAY_ADDRESS") == LOCAL:
        available = ray.cluster_resources()
        amounts = {name: min(size, available.get(name, 0.0)) for name, size in amounts.items()}
    return {
        "num_cpus": float(amounts["CPU"]),
        "num_gpus": float(amounts["GPU"]),
        "runtime_env": {"env_vars": gpu_visibility(amounts["GPU"])},
    }


def this_node_selector() -> dict[str, str]:
    """Return a label selector that places an actor on the node of this process.

    Without it, Ray may place an actor without a CPU on any node, and the loss of that node ends
    work on other nodes.
    """
    return {"ray.io/node-id": this_node()}


def this_node() -> str:
    """Return the Ray id of the node of this process."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def note_shortage(num_cpus: int, *, progress: ProgressReporter) -> None:
    """Report to `progress` if training must wait for CPUs. A task that has just ended gets 2 s to
    release its CPUs."""
    import ray

    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while (
        free := ray.available_resources().get("CPU", 0.0)
    ) < num_cpus and time.monotonic() < deadline:
        time.sleep(0.1)
    if free < num_cpus:
        text = (
            f"training needs {num_cpus} CPUs, but {free:g} are free, {held_by(holders_or_none())}"
        )
        progress.note(f"{text}; it waits until a service or job ends or a node joins")
