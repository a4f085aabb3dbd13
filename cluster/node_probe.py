"""Probe the nodes of a cluster with a Ray task on each: it imports the training, writes to the
registry, and reports the node's memory."""

import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cluster.resources import Node, live_nodes
from tailorbird import storage
from tailorbird.storage import s3
from tailorbird.storage.paths import TaskPaths

T = TypeVar("T")

PROBE_TIMEOUT_S = 120  # imports torch, from a slow disk after the start of a node
TRAINING = "training.worker"  # imports all that a worker needs
ABSENT_ETAG = '"00000000000000000000000000000000"'  # an ETag that no object has
CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and usage of a container's memory, of cgroups 2 and 1."""


@dataclass(frozen=True)
class WriteCheck:
    """Result of writing to the registry. `fault` is None on success."""

    fault: str | None = None
    refuses_second: bool = True  # True if overwriting an object was refused (If-None-Match)
    refuses_stale: bool = True  # True if a write with another ETag was refused (If-Match)


@dataclass(frozen=True)
class NodeReport:
    written: WriteCheck
    memory_bytes: int  # memory of the node or its container
    free_bytes: int  # free memory of the node or its container
    gpu_bytes: tuple[int, ...]  # memory of each GPU as reported by `nvidia-smi`


def probe_nodes(
    nodes: Sequence[Node], *, task_uri: str
) -> tuple[dict[str, NodeReport], dict[str, str]]:
    """Probe all nodes concurrently; return the reports, and the errors of nodes without a report,
    by node id."""
    return _on_each(nodes, probe_node, task_uri)


def gpu_bytes_of_cluster() -> tuple[int, ...]:
    """Return the memory in bytes of each GPU of the connected cluster. Nodes that do not report it
    are omitted."""
    reports, _ = _on_each([node for node in live_nodes() if node.total.gpus], gpu_bytes)
    return tuple(chain.from_iterable(reports.values()))


def _on_each(
    nodes: Sequence[Node], probe: Callable[..., T], *arguments: Any
) -> tuple[dict[str, T], dict[str, str]]:
    """Run `probe` on all nodes concurrently; return its results, and the errors of nodes without
    one, by node id.

    Probes request no CPU, so they also run on a busy cluster. They time out after PROBE_TIMEOUT_S
    seconds.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(probe)
    node_ids = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node.id, soft=False)
        node_ids[task.options(scheduling_strategy=on_node).remote(*arguments)] = node.id
    done, late = ray.wait(list(node_ids), num_returns=len(node_ids), timeout=PROBE_TIMEOUT_S)

    reports = {}
    faults = {}
    for result in late:
        ray.cancel(result, force=True)
        faults[node_ids[result]] = f"no answer within {PROBE_TIMEOUT_S} s"
    for result in done:
        try:
            reports[node_ids[result]] = ray.get(result)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            _, _, last_line = str(cause).rpartition("\n")
            faults[node_ids[result]] = f"{type(cause).__name__}: {last_line}"
    return reports, faults


def probe_node(task_uri: str) -> NodeReport:
    """Return the report of this node; raise ImportError if it lacks a package of the training."""
    total, free = memory_bytes()
    import_module(TRAINING)
    return NodeReport(
        written=check_writing(task_uri),
        memory_bytes=total,
        free_bytes=free,
        gpu_bytes=gpu_bytes(),
    )


def check_writing(task_uri: str) -> WriteCheck:
    """Write and delete a small object under `task_uri` with the conditional writes that a promotion
    needs."""
    uri = TaskPaths(task_uri).preflight_probe(uuid.uuid4().hex)
    try:
        etag = storage.write_if_match(uri, b"one", etag=None)
        try:
            refuses_second = _is_refused(uri, etag=None)
            refuses_stale = _is_refused(uri, etag=ABSENT_ETAG)
            if refuses_second and refuses_stale:
                storage.write_if_match(uri, b"two", etag=etag)
                if storage.read_bytes(uri) != b"two":
                    return WriteCheck(
                        f"the content read from {uri} is not the content written; check the S3 "
                        "server"
                    )
            storage.write_bytes(uri, b"three")
        finally:
            storage.delete(uri)
    except ValueError as error:
        return WriteCheck(str(error))
    return WriteCheck(refuses_second=refuses_second, refuses_stale=refuses_stale)


def _is_refused(uri: str, *, etag: str | None) -> bool:
    try:
        storage.write_if_match(uri, b"other", etag=etag)
    except s3.PreconditionFailed:
        return True
    return False


def memory_bytes() -> tuple[int, int]:
    """Return the total and free memory in bytes of this machine, or of its container if that has
    less."""
    memory = psutil.virtual_memory()
    total = int(memory.total)
    free = int(memory.available)
    for limit, used in CGROUP_FILES:
        with suppress(OSError, ValueError):  # `max` is not a number and means no limit
            allowed = int(Path(limit).read_text())
            if allowed < total:
                total = allowed
                free = min(free, allowed - int(Path(used).read_text()))
    return total, max(0, free)


def gpu_bytes() -> tuple[int, ...]:
    """Return the memory of each GPU of this node in bytes. nvidia-smi is used because it creates no
    CUDA context."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout
        return tuple(int(line) << 20 for line in output.split())
    return ()
