"""The nodes of the workers of a training, and the room on their disks."""

import os
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from training.errors import DiskFull

MIB = 1 << 20


@dataclass(frozen=True)
class _Disk:
    """The disk of a worker's temporary folder, and the bytes that the worker will write to it."""

    node: str
    folder: str
    free: int
    needed: int


def require_room(num_bytes: int, *, what: str) -> None:
    """Raise DiskFull on every rank if the temporary folder of a node has less room than its workers
    need together.

    `num_bytes` is what this rank will write; `what` names it in the message. Every rank must call
    it.
    """
    folder = tempfile.gettempdir()
    disks: dict[tuple[str, str], list[_Disk]] = defaultdict(list)
    for disk in gather(_Disk(node_name(), folder, shutil.disk_usage(folder).free, num_bytes)):
        disks[disk.node, disk.folder].append(disk)
    for (_, folder), workers in disks.items():
        free = min(disk.free for disk in workers)
        needed = sum(disk.needed for disk in workers)
        if free < needed:
            raise DiskFull(
                f"the disk is full: {folder} has {free / MIB:,.1f} MiB left, but {what} of the "
                f"node's {len(workers)} workers needs {needed / MIB:,.1f} MiB; free some space, or "
                "start Ray with TMPDIR on a larger disk"
            )


def node_name() -> str:
    """Return the number of this worker's node in its worker group, from the variable that Ray Train
    sets."""
    return os.environ.get("NODE_RANK", "0")


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
