"""What a node of the cluster sees: a look that runs as a Ray task on each, with the credentials that workers have."""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml

from cluster.requirements import installed_version
from cluster.resources import Node, NodeType, Versions, local_versions, node_types_of
from tailorbird import storage
from tailorbird.storage import s3

PROBE_TIMEOUT_S = 60
NOWHERE = '"00000000000000000000000000000000"'
"""An ETag that no object has."""
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster's file on the head, for its autoscaler."""


@dataclass(frozen=True)
class Asked:
    """What a node is asked to look at."""

    data: tuple[str, ...]
    """A Parquet file of each data URI."""
    task_uri: str
    """URI under which it must be able to write."""
    base_model: str | None
    """URI of the model's folder; None where there is none to look for."""
    packages: tuple[str, ...]
    """Whose versions count."""


@dataclass(frozen=True)
class Written:
    """What came of writing in the registry; None of a fault is that there is none."""

    fault: str | None = None
    refuses_second: bool = True
    """Whether a write that must not overwrite was refused where an object stood (If-None-Match)."""
    refuses_stale: bool = True
    """Whether a write over another version than the one that stood was refused (If-Match)."""


@dataclass(frozen=True)
class NodeLook:
    """What one node sees."""

    node: str
    """Its address."""
    versions: Versions
    packages: dict[str, str | None]
    """Versions by name; None where a package is not installed."""
    unread: dict[str, str]
    """Why a URI cannot be read, by URI."""
    written: Written
    memory_bytes: int
    """Of the node, or of its container."""
    free_bytes: int
    """Of these, not in use."""
    gpu_bytes: tuple[int, ...]
    """Memory of each GPU, where `nvidia-smi` tells."""
    bfloat16: bool
    """Whether its CPU computes in bfloat16."""
    node_types: tuple[NodeType, ...]
    """What an autoscaler may start, where the cluster's file lies here."""
    in_kubernetes: bool
    seconds: float


def look_from_nodes(nodes: Sequence[Node], asked: Asked) -> tuple[dict[str, NodeLook], dict[str, str]]:
    """Looks from each node at once, by its id, and why those that gave no answer did not.

    A look takes no CPU, so that a busy cluster is looked at too, and has PROBE_TIMEOUT_S seconds.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    running = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(asked): node
        for node in nodes
    }
    done, late = ray.wait(list(running), num_returns=len(running), timeout=PROBE_TIMEOUT_S)
    looks, faults = {}, {}
    for one in late:
        ray.cancel(one, force=True)
        faults[running[one].id] = f"no answer within {PROBE_TIMEOUT_S} s"
    for one in done:
        try:
            looks[running[one].id] = ray.get(one)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            faults[running[one].id] = f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[-1]}"
    return looks, faults


def look(asked: Asked) -> NodeLook:
    """From where it runs; what it writes it deletes."""
    begun = time.monotonic()
    unread = {uri: why for uri in asked.data if (why := _unread(uri))}
    if asked.base_model is not None and (why := _absent(f"{asked.base_model}/config.json")):
        unread[asked.base_model] = why
    total, free = memory_bytes()
    return NodeLook(
        node=socket.gethostname(),
        versions=local_versions(),
        packages={name: installed_version(name) for name in asked.packages},
        unread=unread,
        written=try_to_write(asked.task_uri),
        memory_bytes=total,
        free_bytes=free,
        gpu_bytes=_gpu_bytes(),
        bfloat16="avx512_bf16" in _cpu_flags(),
        node_types=_bootstrap_types(),
        in_kubernetes="KUBERNETES_SERVICE_HOST" in os.environ,
        seconds=time.monotonic() - begun,
    )


def try_to_write(task_uri: str) -> Written:
    """Writes a small object under `task_uri`, tries what a promotion rests on, reads it back and deletes it."""
    uri = f"{task_uri}/preflight/{uuid.uuid4().hex}"
    try:
        etag = storage.write_if_match(uri, b"one", etag=None)
        try:
            second, stale = (_is_refused(uri, etag=other) for other in (None, NOWHERE))
            if second and stale:
                storage.write_if_match(uri, b"two", etag=etag)
                if storage.read_bytes(uri) != b"two":
                    return Written(f"{uri} was written, and something else was read back; check the store")
            storage.write_bytes(uri, b"three")
        finally:
            storage.delete(uri)
    except ValueError as error:
        return Written(str(error))
    return Written(refuses_second=second, refuses_stale=stale)


def _is_refused(uri: str, *, etag: str | None) -> bool:
    try:
        storage.write_if_match(uri, b"other", etag=etag)
    except s3.PreconditionFailed:
        return True
    return False


def memory_bytes() -> tuple[int, int]:
    """Of this machine, or of its container where that has less: all, and what is free."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # `max` is no number: there is no limit
            allowed = int(Path(limit).read_text())
            if allowed < total:
                total, free = allowed, min(free, allowed - int(Path(used).read_text()))
    return total, max(0, free)


def _unread(uri: str) -> str | None:
    """Why the footer of a Parquet file cannot be read."""
    try:
        store, path = s3.filesystem(uri)
        with s3.storage_errors(uri), store.open_input_file(path) as source:
            pq.read_schema(source)
    except ValueError as error:  # pyarrow's own for what is no Parquet among them
        return str(error)
    return None


def _absent(uri: str) -> str | None:
    """Why a file is not there, from here."""
    try:
        return None if storage.exists(uri) else f"{uri} is not there; a base model on file:// must lie on every node"
    except ValueError as error:
        return str(error)


def _gpu_bytes() -> tuple[int, ...]:
    """As the driver's own program tells, so that no CUDA context is made for it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return tuple(int(line) << 20 for line in told.split())
    return ()


def _cpu_flags() -> set[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    return set()


def _bootstrap_types() -> tuple[NodeType, ...]:
    content: Any = None
    with suppress(OSError, yaml.YAMLError, RuntimeError):  # RuntimeError: a user without a home
        content = yaml.safe_load(BOOTSTRAP.expanduser().read_text(encoding="utf-8"))
    return node_types_of(content)
