"""Figures of a part with their bounds, its time limit, and functions that run in a process of their own."""

import json
import multiprocessing
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, TypeVar

from benchmarks.rounds import holds

T = TypeVar("T")

LIMIT_S = 510
"""Time limit of a part in seconds, with room to stop its servers within 9 minutes."""
REDUCED_LIMIT_S = 1800
"""The same in the reduced form, which may share its machine with other tests."""


class Failed(Exception):
    """A figure out of its bound, a failed step, or the end of the time limit. The message is one line."""


@dataclass
class Report:
    """The figures of a part, printed while they are measured and as one line of JSON at the end."""

    part: str
    reduced: bool
    figures: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, name: str, value: float, bound: str | None = None, *, hardware: bool = False) -> None:
        """Record a figure. Raise Failed if it is out of its bound.

        A bound of the `hardware` does not apply in the reduced form.
        """
        self.figures[name] = value
        text = f"{name}: {value:,.4g}"
        if bound is None:
            print(text, flush=True)
        elif hardware and self.reduced:
            self.not_applicable[name] = bound
            print(f"{text} (bound {bound} does not apply in the reduced form)", flush=True)
        else:
            self.bounds[name] = bound
            print(f"{text} (bound {bound})", flush=True)
            if not holds(value, bound):
                raise Failed(f"{name} is {value:,.4g}, but the bound is {bound}")

    def finish(self, failure: str | None = None, *, skipped: str | None = None) -> None:
        """Print the line of JSON."""
        result = {
            "benchmark": f"gpu {self.part}",
            "reduced": self.reduced,
            "device": device_name(reduced=self.reduced),
            "seconds": round(time.monotonic() - self.started, 1),
            "figures": {name: round(value, 4) for name, value in self.figures.items()},
            "bounds": self.bounds,
            "not_applicable": self.not_applicable,
            "holds": failure is None and skipped is None,
        }
        result |= {name: text for name, text in (("failed", failure), ("skipped", skipped)) if text is not None}
        print(json.dumps(result), flush=True)


def device_name(*, reduced: bool) -> str:
    """Return the name of the GPU, or the processor's architecture in the reduced form or without a GPU."""
    if not reduced:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Failed in the main thread if the block takes longer."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Failed(f"the time limit of {seconds:.0f} s is over")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def in_child(function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function of a module, called in a new process, so that its memory is free afterwards.

    Raises Failed with the error of the function, or if the process dies.
    """
    result: T = next(from_child(_once, function, arguments))
    return result


def from_child(function: Callable[..., Iterable[T]], *arguments: Any) -> Iterator[T]:
    """Yield the results of a generator function like `in_child`, while it computes the next ones."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_results, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        while (message := receiver.recv()) is not None:
            error, result = message
            if error is not None:
                raise Failed(error)
            yield result
    except EOFError:
        child.join()
        raise Failed(f"the process of {_name(function, arguments)} died with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()


def _once(function: Callable[..., T], arguments: tuple[Any, ...]) -> Iterator[T]:
    yield function(*arguments)


def _send_results(sender: Connection, function: Callable[..., Iterable[Any]], arguments: tuple[Any, ...]) -> None:
    try:
        for result in function(*arguments):
            sender.send((None, result))
        sender.send(None)
    except Exception as error:
        traceback.print_exc()
        first_line = (str(error).splitlines() or [""])[0]
        sender.send((f"{_name(function, arguments)}: {type(error).__name__}: {first_line}", None))


def _name(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    return str((arguments[0] if function is _once else function).__name__)
