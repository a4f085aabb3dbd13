"""The queue of runs on an embedded stack: one run at a time, because runs that share few CPUs wait
for each other."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local import stack

QUEUE_FILE = "run.lock"


def stack_in_use() -> Path | None:
    """Return the folder of the stack that the environment configures; None for another cluster."""
    token_path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not os.environ.get(stack.OWN_DASHBOARD) or not token_path:
        return None
    folder = Path(token_path).resolve().parent
    if (folder / stack.KEYS_FILE).exists():
        return folder
    return None


@contextmanager
def turn(folder: Path | None, *, command: str, note: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other run uses the stack of `folder`, and hold the stack during the block.

    `note` receives a line with the command of the other run if this run must wait. The system
    releases the lock of a process that ends. Without a folder, do nothing: another cluster may have
    room for several runs.
    """
    if folder is None:
        yield
        return
    with open(folder / QUEUE_FILE, "a+", opener=stack.private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            note(
                "waiting for another run on this stack: "
                f"{lock.read().strip() or 'it is just starting'}"
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{command} (process {os.getpid()})\n")
        lock.flush()
        yield
