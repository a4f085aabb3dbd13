"""Figures of a part with their bounds, its time limit, and functions that run in a process of their
own."""

import json
import multiprocessing
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """A figure out of its bound, a failed step, or the end of the time limit. The message is one
    line."""


@dataclass
class Report:
    """The figures of a part, printed while they are measured and as one line of JSON at the end."""

    part: str
    reduced: bool
    keep_going: bool = False  # continue after a figure out of its bound
    figures: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)  # one line for each figure out of its bound
    not_run: list[str] = field(default_factory=list)  # sections for which the time did not suffice
    started: float = field(default_factory=time.monotonic)

    @property
    def limit_s(self) -> float:
        """Time limit of the part in seconds."""
        return REDUCED_LIMIT_S if self.reduced else LIMIT_S

    @property
    def passed(self) -> bool:
        """True if all sections have run and no figure is out of its bound."""
        return not self.missed and not self.not_run

    def add(
        self, name: str, value: float, bound: str | None = None, *, hardware: bool = False
    ) -> None:
        """Record a figure. Raise Failed if it is out of its bound.

        A bound of the `hardware` does not apply in the reduced form.
        """
        self.add_all({name: value}, {} if bound is None else {name: bound}, hardware=hardware)

    def add_all(
        self, figures: Mapping[str, float], bounds: Mapping[str, str], *, hardware: bool = False
    ) -> None:
        """Record figures that were measured together. Raise Failed if one of them is out of its
        bound."""
        missed = []
        for name, value in figures.items():
            self.figures[name] = value
            bound, text = bounds.get(name), f"{name}: {value:,.4g}"
            if bound is None:
                print(text, flush=True)
            elif hardware and self.reduced:
                self.not_applicable[name] = bound
                print(f"{text} (bound {bound} does not apply in the reduced form)", flush=True)
            else:
                self.bounds[name] = bound
                print(f"{text} (bound {bound})", flush=True)
                if not holds(value, bound):
                    missed.append(f"{name} is {value:,.4g}, but the bound is {bound}")
        self.missed += missed
        if missed and not self.keep_going:
            raise Failed("; ".join(missed))

    def has_time_for(self, section: str, *, expected_s: float) -> bool:
        """Return True if the rest of the time limit suffices for a section; else record that it is
        not run."""
        left = self.limit_s - (time.monotonic() - self.started)
        if expected_s <= left:
            return True
        self.not_run.append(section)
        print(
            f"NOT RUN: section {section} takes about {expected_s:.0f} s, but only {left:.0f} s "
            f"are left; to run it: python -m benchmarks.gpu --part {self.part} --section "
            f"{section}",
            flush=True,
        )
        return False

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
            "not_run": self.not_run,
            "holds": failure is None and skipped is None and self.passed,
        }
        result |= {
            name: text
            for name, text in (("failed", failure), ("skipped", skipped))
            if text is not None
        }
        print(json.dumps(result), flush=True)


def device_name(*, reduced: bool) -> str:
    """Return the name of the GPU, or the processor's architecture in the reduced form or without a
    GPU."""
    if not reduced:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Failed in the main thread if the block takes longer.

    The signal raises KeyboardInterrupt within the block, because `ray.get` ends the process for
    other exceptions of a signal handler.
    """
    over = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal over
        over = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt:
        if over:
            raise Failed(f"the time limit of {seconds:g} s is over") from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def in_child(
    function: Callable[..., T], *arguments: Any, environment: Mapping[str, str] | None = None
) -> T:
    """Return the result of a function of a module, called in a new process, so that its memory is
    free afterwards.

    The process has the variables `environment` in addition to those of this one. Raises Failed with
    the error of the function, or if the process dies.
    """
    result: T = next(from_child(_once, function, arguments, environment=environment))
    return result


def from_child(
    function: Callable[..., Iterable[T]],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
) -> Iterator[T]:
    """Yield the results of a generator function like `in_child`, while it computes the next
    ones."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_results, args=(sender, function, arguments))
    with _variables(environment or {}):
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
        raise Failed(
            f"the process of {_name(function, arguments)} died with exit code {child.exitcode}"
        ) from None
    finally:
        child.kill()
        child.join()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _once(function: Callable[..., T], arguments: tuple[Any, ...]) -> Iterator[T]:
    yield function(*arguments)


def _send_results(
    sender: Connection, function: Callable[..., Iterable[Any]], arguments: tuple[Any, ...]
) -> None:
    # Otherwise the processes of a DataLoader would be spawned too, and each of them would import
    # torch and DeepSpeed.
    multiprocessing.set_start_method("fork", force=True)
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
