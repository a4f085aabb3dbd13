"""Run a command as a child process, and store the end of its log in the registry if it fails.

Ray keeps the log of a driver on the head node, which a RayJob deletes with its cluster. The parent
process stores it, so the log is kept even if the driver alone is killed. If a container exceeds its
limit of memory, Kubernetes may kill all of its processes, and the log is lost.
"""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

from tailorbird import storage
from tailorbird.storage.paths import TaskPaths

MAX_BYTES = 8 << 20  # size of a stored log
CHUNK_BYTES = 1 << 16
SIGNALLED = 128  # plus the signal's number: exit code of a process that a signal ended


def run_and_keep_log(command: Sequence[str], *, task_uri: str, max_bytes: int = MAX_BYTES) -> int:
    """Run the command, copy its output to standard output, and return its exit code.

    If the code is not 0, store the last `max_bytes` bytes of the output and the code in the task's
    folder `logs/`. A log that cannot be stored is reported and does not change the code. SIGTERM
    does not end this process: Ray sends it to the child process too.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)
    log = bytearray()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as child:
        assert child.stdout is not None
        while chunk := child.stdout.read(CHUNK_BYTES):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            log += chunk
            if len(log) > 2 * max_bytes:
                del log[:-max_bytes]
    if child.returncode < 0:
        code = SIGNALLED - child.returncode
    else:
        code = child.returncode
    if code:
        _store(bytes(log[-max_bytes:]) + f"\nexit code {code}\n".encode(), task_uri=task_uri)
    return code


def _store(log: bytes, *, task_uri: str) -> None:
    uri = TaskPaths(task_uri).log(f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{socket.gethostname()}")
    try:
        storage.write_bytes(uri, log)
    except (ValueError, OSError) as error:
        print(f"error: the log cannot be stored at {uri}: {error}", file=sys.stderr, flush=True)
    else:
        text = f"the log is kept at {uri}; to download it: tailorbird data get {uri} logs"
        print(text, file=sys.stderr, flush=True)
