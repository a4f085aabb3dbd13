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
        self._paused = False

    async def wait(self, *, client: str, num_bytes: int) -> None:
        """Wait until a body of more than `SMALL_BODY_BYTES` may be parsed. A cancelled call leaves the queue."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entries = self._queue.add(client, [(turn, num_bytes)])
        self._start()
        try:
            await turn
        finally:
            self._queue.discard(entries)

    def _start(self) -> None:
        """Begin the next turn, unless the pause after the last one has not ended."""
        while not self._paused and (entry := self._queue.first(allowed=lambda _client: True)):
            if entry.item.done():  # cancelled
                self._queue.discard([entry])
                continue
            self._queue.serve([entry])
            self._paused = True
            asyncio.get_running_loop().call_later(entry.cost / BYTES_PER_S, self._end_pause)
            entry.item.set_result(None)

    def _end_pause(self) -> None:
        self._paused = False
        self._start()
