"""Turns in which large bodies are parsed, so that they do not delay the requests of other clients."""

import asyncio

from serving.engines.fair_queue import FairQueue

SMALL_BODY_BYTES = 16 << 10  # parsed at once: 8,000 invalid items take about a millisecond
BYTES_PER_S = 10e6
"""Rate at which a replica parses large bodies. To receive and parse 1 MB takes 5 to 20 ms of the event loop."""


class BodyTurns:
    """Turns of large bodies, fair between clients. After each one is a pause, in which other requests run.

    Parsing holds the GIL, so in a thread it would delay other requests as much as in the event loop. Use it in one
    event loop.
    """

    def __init__(self) -> None:
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self._next_at = 0.0  # time of the event loop at which the pause ends

    async def wait(self, *, client: str, num_bytes: int) -> None:
        """Wait until a body may be parsed; return at once if it is small. A cancelled call leaves the queue."""
        if num_bytes <= SMALL_BODY_BYTES:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entries = self._queue.add(client, [(turn, num_bytes)])
        self._start()
        try:
            await turn
        finally:
            self._queue.discard(entries)

    def _start(self) -> None:
        """Begin the next turn, unless the pause after the last one has not ended."""
        loop = asyncio.get_running_loop()
        while loop.time() >= self._next_at and (entry := self._queue.first(allowed=lambda _client: True)):
            if entry.item.done():  # cancelled
                self._queue.discard([entry])
                continue
            self._queue.serve([entry])
            self._next_at = loop.time() + entry.cost / BYTES_PER_S
            loop.call_at(self._next_at, self._end_pause)
            entry.item.set_result(None)

    def _end_pause(self) -> None:
        self._next_at = 0.0  # the event loop may call this a moment too early
        self._start()
