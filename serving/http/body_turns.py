"""Turns in which large bodies and schemas are parsed, so that they do not delay the requests of other clients."""

import asyncio

from serving.engines.fair_queue import FairQueue

SMALL_BODY_BYTES = 16 << 10  # parsed at once: 8,000 invalid items take about a millisecond
BYTES_PER_S = 10e6
"""Rate at which a replica parses large bodies. To receive and parse 1 MB takes 5 to 20 ms of the event loop."""

SCHEMA_FACTOR = 50
"""Time per byte to validate the slowest schemas, which have at most `SCHEMA_BYTES`, relative to parsing."""
SCHEMA_BYTES = 16 << 10
_SCHEMA = (b"json_schema", rb"\u004", rb"\u005", rb"\u006", rb"\u007")  # no library writes letters as escapes


def turn_bytes(body: bytes) -> int:
    """Return the size of a body in its turn, in bytes that take as long to parse; 0 if it is parsed at once."""
    has_schema = any(text in body for text in _SCHEMA)
    if not has_schema and len(body) <= SMALL_BODY_BYTES:
        return 0
    return len(body) + has_schema * SCHEMA_FACTOR * min(len(body), SCHEMA_BYTES)


class BodyTurns:
    """Turns of large bodies and schemas, fair between clients. After each one is a pause, in which other requests run.

    Parsing holds the GIL, so in a thread it would delay other requests as much as in the event loop. Use it in one
    event loop.
    """

    def __init__(self) -> None:
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self._paused = False

    async def wait(self, *, client: str, num_bytes: int) -> None:
        """Wait until a body with these `turn_bytes` may be parsed. A cancelled call leaves the queue."""
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
