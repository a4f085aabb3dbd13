"""Clients that send requests continuously and record the responses, for tests of a service under
load."""

import http.client
import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

import psutil

from cluster.local import stack

# between two requests of a client; the tests need requests at any time, not the maximum rate
PAUSE_S = 0.05


@dataclass
class Responses:
    """Responses so far: end time, duration in seconds, status (0 without a response) and request id
    of each."""

    answers: list[tuple[float, float, int, str]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    """Numbers of connection errors, and of responses with status 500, by their text."""

    def statuses(self, *, since: float = 0.0, until: float = float("inf")) -> Counter[int]:
        """Return the number of requests by status that ended between two times of
        `time.monotonic()`."""
        return Counter(status for ended, _, status, _ in self.answers if since <= ended <= until)

    def ids(self, status: int) -> set[str]:
        return {request_id for _, _, answered, request_id in self.answers if answered == status}

    def wait_for(self, number: int) -> None:
        """Wait until this many further requests have ended, with any status."""
        wanted = len(self.answers) + number
        while len(self.answers) < wanted:
            time.sleep(PAUSE_S)

    def last(self, number: int) -> set[int]:
        """Return the statuses of the last `number` requests."""
        return {status for _, _, status, _ in self.answers[-number:]}

    def without_answer_s(self) -> float:
        """Return the longest time in seconds without a response with status 200."""
        ended = sorted(ended for ended, _, status, _ in self.answers if status == 200)
        return max((later - earlier for earlier, later in pairwise(ended)), default=float("inf"))


@contextmanager
def under_load(
    url: str, texts: Sequence[str], *, clients: int = 8, timeout_s: float = 60
) -> Iterator[Responses]:
    """Send requests with one text each to `/v1/classify` on persistent connections, until the block
    ends.

    Headers and body are sent separately, as most Python clients do.
    """
    responses, over = Responses(), threading.Event()
    address = urlsplit(url)

    def ask(number: int) -> None:
        connection: http.client.HTTPConnection | None = None
        position = number
        while not over.is_set():
            request_id, begun, status = uuid.uuid4().hex, time.monotonic(), 0
            try:
                connection = connection or http.client.HTTPConnection(
                    address.netloc, timeout=timeout_s
                )
                body = json.dumps({"input": texts[position % len(texts)]})
                headers = {"content-type": "application/json", "x-request-id": request_id}
                connection.request("POST", f"{address.path}/v1/classify", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                status = answer.status
                if status == 500:
                    responses.faults[
                        f"{content.decode(errors='replace')} {answer.headers.items()}"
                    ] += 1
                if answer.will_close:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                responses.faults[f"{type(error).__name__}: {error}"] += 1
                if connection is not None:
                    connection.close()
                connection = None
            responses.answers.append(
                (time.monotonic(), time.monotonic() - begun, status, request_id)
            )
            position += clients
            over.wait(PAUSE_S)
        if connection is not None:
            connection.close()

    threads = [
        threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield responses
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout_s)


def processes(state: stack.StackState, pattern: str) -> list[psutil.Process]:
    """Return the stack's processes whose command line matches the pattern."""
    matching = []
    for process in psutil.Process(state.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            is_running = process.status() != psutil.STATUS_ZOMBIE
            if is_running and re.search(pattern, " ".join(process.cmdline())):
                matching.append(process)
    return matching
