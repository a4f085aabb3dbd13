"""Live progress: workers tell a relay actor, the driver shows it: a moving line on a terminal, plain lines in a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner

from cluster.progress_table import Rows, begin_board, board, noted
from cluster.remote import on_this_node

Event = dict[str, Any]
Show = Callable[[Event], None]

POLL_S = 0.5
LOG_EVERY_S = 15.0


class Relay:
    """Used as a Ray actor without a CPU: keeps events until the driver fetches them."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def tell(self, event: Event) -> None:
        self._events.append(event)

    def fetch(self) -> list[Event]:
        """The events since the last fetch."""
        events, self._events = self._events, []
        return events


@contextmanager
def relayed(show: Show) -> Iterator[Any]:
    """A relay whose events `show` gets, in a thread, until the block ends."""
    relay = ray.remote(Relay).options(num_cpus=0, label_selector=on_this_node()).remote()
    over = threading.Event()

    def follow() -> None:
        while True:
            last = over.wait(POLL_S)
            for event in ray.get(relay.fetch.remote()):
                show(event)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        over.set()
        thread.join()
        ray.kill(relay)


@contextmanager
def display(console: Console) -> Iterator[Show]:
    """Shows events of kind `stage`, `note`, `step`, `epoch` and `trial` on a console.

    On a terminal a stage that comes with `rungs` has a table of them and of its trials, which stays when it is over.
    """
    if not console.is_terminal:
        yield _lines(console)
        return
    with Live(console=console, transient=True) as live:
        yield _live(console, live)


def _live(console: Console, live: Live) -> Show:
    rows: Rows = {}
    spinner = Spinner("dots", "starting")

    def show(event: Event) -> None:
        nonlocal rows
        if event["event"] == "stage":
            if rows:
                console.print(board(rows))
            rows = begin_board(event.get("rungs", {}))
        rows = noted(rows, event) if rows else rows
        if event["event"] == "step":
            spinner.update(text=_step(event))
        elif event["event"] != "trial":
            console.print(_line(event), highlight=False, soft_wrap=True)
            spinner.update(text=escape(event.get("text", "…")))
        live.update(Group(spinner, board(rows)) if rows else spinner)

    return show


def _lines(console: Console) -> Show:
    said = 0.0

    def show(event: Event) -> None:
        nonlocal said
        if event["event"] not in ("step", "trial"):
            console.print(_line(event), highlight=False, soft_wrap=True)
        elif event["event"] == "step" and time.monotonic() - said > LOG_EVERY_S:
            said = time.monotonic()
            console.print("  " + _step(event), highlight=False, soft_wrap=True)

    return show


def _line(event: Event) -> str:
    if event["event"] == "stage":
        return f"[bold]{escape(event['text'])}[/bold]"
    if event["event"] == "epoch":
        return (
            f"  {_who(event)} epoch {event['epoch'] + 1}: validation {event['score']:.3f}, "
            f"loss {event['loss']:.3f}, {event['rows_per_second']:.0f} rows/s"
        )
    return f"  {escape(event['text'])}"


def _step(event: Event) -> str:
    return (
        f"{_who(event)} epoch {event['epoch'] + 1}, step {event['step']}/{event['num_steps']}, "
        f"loss {event['loss']:.3f}, {event['rows_per_second']:.0f} rows/s"
    )


def _who(event: Event) -> str:
    return f"trial {event['trial'][-5:]}" if "trial" in event else f"seed {event['seed']}"
