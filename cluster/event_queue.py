"""Progress events from workers to the driver, through a Ray actor."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from cluster.progress import ProgressEvent, ProgressReporter
from cluster.remote import this_node_selector

POLL_S = 0.5


def queue_progress(queue: Any) -> ProgressReporter:
    """Return a reporter that can be sent to Ray tasks. Events of driver and tasks keep their order
    in time."""
    return ProgressReporter(partial(_put, queue))


def _put(queue: Any, event: ProgressEvent) -> None:
    ray.get(queue.put.remote(event))  # wait, because Ray does not order the calls of two processes


class EventQueue:
    """Ray actor that keeps events until the driver fetches them. It needs no CPU."""

    def __init__(self) -> None:
        self._events: list[ProgressEvent] = []

    def put(self, event: ProgressEvent) -> None:
        self._events.append(event)

    def fetch(self) -> list[ProgressEvent]:
        """Return the events since the last fetch."""
        events = self._events
        self._events = []
        return events


@contextmanager
def forward_events(progress: ProgressReporter) -> Iterator[Any]:
    """Yield the handle of an EventQueue. A thread reports its events to `progress` until the block
    ends."""
    queue = ray.remote(EventQueue).options(num_cpus=0, label_selector=this_node_selector()).remote()
    over = threading.Event()

    def follow() -> None:
        while True:
            last = over.wait(POLL_S)
            try:
                events = ray.get(queue.fetch.remote())
            except Exception as error:
                if ray.is_initialized():  # otherwise Ctrl-C or SIGTERM has shut it down
                    progress.note(f"the display shows no further progress of tasks: {error}")
                return
            for event in events:
                progress.report(event)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        over.set()
        thread.join()
        ray.kill(queue)
