"""The notice that a worker or its node will go: SIGTERM, or Ray's word; the loop then keeps a checkpoint at once."""

import signal
import threading
from types import FrameType
from typing import Any

_terminated = threading.Event()
_preemption: Any = None
"""Where Ray Train's watcher of nodes leaves its word; None outside a worker that heeds it."""


class Interrupted(RuntimeError):
    """A worker that was told to go, and whose training is kept; the message says who told it."""


def heed() -> None:
    """From now on this worker takes a first SIGTERM as notice; a second one ends it, as Ray has it.

    Python sets handlers in the main thread only, and Ray Train runs the training function in another: the worker's
    actor is asked to do it, whose methods run there.
    """
    global _preemption
    import ray
    from ray.train.v2._internal.execution.context import get_train_context

    # Not ray.train.get_preemption_info(): that is a barrier over all ranks, a call to an actor at each step.
    _preemption = get_train_context().preemption_context
    ray.get(ray.get_runtime_context().current_actor.execute.remote(_handle_sigterm))


def given() -> str | None:
    """Who told this worker to go, if anyone did."""
    if _terminated.is_set():
        return "the worker got SIGTERM"
    if _preemption is not None and _preemption.preemption_info is not None:
        return "a node of the training is drained"
    return None


def _handle_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def note(_number: int, _frame: FrameType | None) -> None:
        _terminated.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)
