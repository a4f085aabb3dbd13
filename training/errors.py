"""Describe the failure of a training in one line, with advice."""

import errno
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.ray_private import unwrap_worker_failure
from tailorbird.storage.s3 import StorageError, storage_errors
from training.engine.memory_estimate import ADVICE
from training.preemption import Interrupted

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MIN_FREE_BYTES = 16 << 20
"""With less free space, any error is reported as a full disk, because torch raises only `unexpected
pos`."""
MAX_MESSAGE_CHARS = 600


class DiskFull(OSError):
    """The disk of a worker's temporary folder is full."""


class OutOfMemory(RuntimeError):
    """A GPU does not have enough memory for a micro-batch, and the training must continue with at
    most `batch_tokens` tokens in one."""

    def __init__(self, batch_tokens: int) -> None:
        super().__init__(batch_tokens)  # pickle calls the class with it
        self.batch_tokens = batch_tokens

    def __str__(self) -> str:
        return (
            "a GPU ran out of memory; training continues with training.batch_tokens: "
            f"{self.batch_tokens}"
        )


class UnusableCheckpoint(ValueError):
    """A training cannot resume from the checkpoint."""


@contextmanager
def staging_directory() -> Iterator[Path]:
    """Yield a temporary folder that the caller deletes later.

    If the block fails, delete the folder, and raise DiskFull if the cause is a lack of space.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    except BaseException as error:
        free = shutil.disk_usage(folder).free
        shutil.rmtree(folder, ignore_errors=True)
        if free >= MIN_FREE_BYTES and getattr(error, "errno", None) not in DISK_FULL_ERRNOS:
            raise
        raise DiskFull(
            f"the disk is full: {folder.parent} has {free / 2**20:.1f} MiB left ({error}); free "
            "some space, or start Ray with TMPDIR on a larger disk (a checkpoint needs four times "
            "the size of the weights)"
        ) from error


def out_of_memory(failures: Iterable[BaseException]) -> OutOfMemory | None:
    """Return the OutOfMemory with the smallest limit among the failures of workers, or None."""
    causes = map(unwrap_worker_failure, failures)
    raised = [cause for cause in causes if isinstance(cause, OutOfMemory)]
    return min(raised, key=lambda error: error.batch_tokens, default=None)


def describe_failure(error: Exception, *, uri: str) -> str:
    """Return the cause of a failed Ray Train run in one line, with advice; `uri` is the training's
    folder."""
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError
    from torch import OutOfMemoryError

    if not isinstance(error, WorkerGroupError):
        return _message(getattr(error, "controller_failure", error), uri=uri)
    causes = (RayActorError, Interrupted, OSError, OutOfMemory, OutOfMemoryError, StorageError)
    all_failures = []
    named = []
    for rank, failure in sorted(error.worker_failures.items()):
        cause = unwrap_worker_failure(failure)
        all_failures.append(f"worker {rank}: {_message(cause, uri=uri)}")
        # When a worker fails, the other workers lose their connections. Their errors do not name
        # the cause.
        if isinstance(cause, causes):
            named.append(all_failures[-1])
    return "; ".join(named or all_failures)


def _message(failure: BaseException, *, uri: str) -> str:
    from ray.exceptions import RayActorError
    from torch import OutOfMemoryError

    text = str(failure)
    if isinstance(failure, RayActorError):
        return _death_message(text)
    if isinstance(failure, (StorageError, Interrupted, DiskFull, OutOfMemory)):
        return text
    if isinstance(failure, OutOfMemoryError):
        return f"{text.partition('. GPU ')[0]}; {ADVICE}"  # the rest describes the allocator
    if isinstance(failure, OSError):
        try:
            with storage_errors(uri):
                raise failure
        except StorageError as storage_error:
            return str(storage_error)
    return f"{type(failure).__name__}: {text[-MAX_MESSAGE_CHARS:]}"


def _death_message(text: str) -> str:
    """Return the reason why a worker died; `text` is Ray's long message."""
    if _exceeded_node(text):
        return (
            "Ray killed its process because the node ran out of memory; set "
            "training.gradient_checkpointing, or lower training.batch_size or "
            "training.batch_tokens"
        )
    if "node has died" in text or "node died" in text or "node was terminated" in text.lower():
        return (
            "its node was lost; run `ray status` to list the remaining nodes "
            f"({_first_line(text, 'node')})"
        )
    return (
        "its process crashed or was killed, most often by the kernel's out-of-memory killer; "
        "check dmesg on its node, and set training.gradient_checkpointing or lower "
        f"training.batch_size ({_first_line(text, 'exit')})"
    )


def _exceeded_node(text: str) -> bool:
    """Return True if Ray killed a worker because its node was low on memory."""
    return "low on memory" in text or "OutOfMemory" in text


def _first_line(text: str, word: str) -> str:
    lines = (line.strip() for line in text.splitlines() if word in line.lower())
    return next(lines, text)[:MAX_MESSAGE_CHARS]
