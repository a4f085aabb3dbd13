"""Notice that a worker or its node is about to be stopped (SIGTERM, Ray's preemption), checked at each step."""

import signal
import threading
from types import FrameType
from typing import Any

from cluster import ray_private

_terminated = threading.Event()
_preemption_context: Any = None  # Ray Train's record of preempted nodes; None outside a worker with handlers


class Interrupted(RuntimeError):
    """A worker that had to stop, after its training was checkpointed; the message says why."""


def install_handlers() -> None:
    """Checkpoint on the first SIGTERM; exit on the second (Ray's default).

    Python sets signal handlers in the main thread only, and Ray Train runs the training function in another one, so
    the handler is installed by a method of the worker's actor, which runs in the main thread.
    """
    global _preemption_context
    _preemption_context = ray_private.preemption_context()
    ray_private.run_in_main_thread(_handle_sigterm)


def preemption_reason() -> str | None:
    """Return why this worker has to stop, or None."""
    if _terminated.is_set():
        return "the worker got SIGTERM"
    if _preemption_context is not None and _preemption_context.preemption_info is not None:
        return "a node of the training is drained"
    return None


def _handle_sigterm() -> None:
    previous = signal.getsignal(signal.SIGTERM)

    def handle(_number: int, _frame: FrameType | None) -> None:
        _terminated.set()
        signal.signal(signal.SIGTERM, previous)

    signal.signal(signal.SIGTERM, handle)
