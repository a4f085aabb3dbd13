"""Detect that a worker or its node will be stopped (SIGTERM, or preemption in Ray).

The loop checks it about once a second.
"""

import signal
import threading
from types import FrameType
from typing import Any

from cluster import ray_private

_terminated = threading.Event()
_preemption_context: Any = None
"""Ray Train's record of preempted nodes; None if no handlers are installed."""


class Interrupted(RuntimeError):
    """The worker stopped after writing a checkpoint, because it or its node will be stopped."""


def install_handlers() -> None:
    """Checkpoint on the first SIGTERM; exit on the second (Ray's default).

    Python sets signal handlers only in the main thread, but Ray Train runs the training function in
    another thread. A method of the worker's actor, which runs in the main thread, therefore
    installs the handler.
    """
    global _preemption_context
    _preemption_context = ray_private.preemption_context()
    ray_private.run_in_main_thread(_handle_sigterm)


def preemption_reason() -> str | None:
    """Return the reason why this worker must stop, or None."""
    if _terminated.is_set():
        return "the worker received SIGTERM"
    if _preemption_context is not None and _preemption_context.preemption_info is not None:
        return "a node of the training is being drained"
    return None


def _handle_sigterm() -> None:
    previous = signal.getsignal(signal.SIGTERM)

    def handle(_number: int, _frame: FrameType | None) -> None:
        _terminated.set()
        signal.signal(signal.SIGTERM, previous)

    signal.signal(signal.SIGTERM, handle)
