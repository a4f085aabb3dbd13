"""Clients that ask without pause, and what they heard: for tests of what happens to a service meanwhile."""

import http.client
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

PAUSE_S = 0.05  # between two requests of a client: the tests need requests at any moment, not the highest rate


@dataclass
class Responses:
    """A place a request: when it ended, how long it took, its status (0: no answer), and its id."""

    answers: list[tuple[float, float, int, str]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    """What stood in the way of an answer, and what an answer of 500 said."""

    def statuses(self, *, since: float = 0.0, until: float = float("inf")) -> Counter[int]:
        """How many requests ended with which status, between two times of `time.monotonic()`."""
        return Counter(status for ended, _, status, _ in self.answers if since <= ended <= until)

    def ids(self, status: int) -> set[str]:
        return {request_id for _, _, answered, request_id in self.answers if answered == status}

    def wait_for(self, number: int) -> None:
        """Wait until this many further requests have ended, with any status."""
        wanted = len(self.answers) + number
        while len(self.answers) < wanted:
            time.sleep(PAUSE_S)

    def last(self, number: int) -> set[int]:
        """Return the statuses of the last requests."""
        return {status for _, _, status, _ in self.answers[-number:]}

    def without_answer_s(self) -> float:
        """The longest time in which no request was answered with 200."""
        ended = sorted(ended for ended, _, status, _ in self.answers if status == 200)
        return max((later - earlier for earlier, later in pairwise(ended)), default=float("inf"))


@contextmanager
def under_load(url: str, texts: Sequence[str], *, clients: int = 8, timeout_s: float = 60) -> Iterator[Responses]:
    """Clients on kept connections that ask `/v1/classify` for one text each, until the block ends.

    Head and body leave apart, as most clients in Python send them.
    """
    heard, over = Responses(), threading.Event()
    address = urlsplit(url)

    def ask(number: int) -> None:
        connection: http.client.HTTPConnection | None = None
        position = number
        while not over.is_set():
            request_id, begun, status = uuid.uuid4().hex, time.monotonic(), 0
            try:
                connection = connection or http.client.HTTPConnection(address.netloc, timeout=timeout_s)
                body = json.dumps({"input": texts[position % len(texts)]})
                headers = {"content-type": "application/json", "x-request-id": request_id}
                connection.request("POST", f"{address.path}/v1/classify", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                status = answer.status
                if status == 500:
                    heard.faults[f"{content.decode(errors='replace')} {answer.headers.items()}"] += 1
                if answer.will_close:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                heard.faults[f"{type(error).__name__}: {error}"] += 1
                if connection is not None:
                    connection.close()
                connection = None
            heard.answers.append((time.monotonic(), time.monotonic() - begun, status, request_id))
            position += clients
            over.wait(PAUSE_S)
        if connection is not None:
            connection.close()

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout_s)
