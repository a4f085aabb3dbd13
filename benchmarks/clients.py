"""Clients in a separate process that send requests without a pause."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

ROOT = Path(__file__).parents[1]


class Response(NamedTuple):
    """The result of a request."""

    ended: float  # monotonic time
    latency_s: float
    body: int  # position of the request's body
    answer: dict[str, Any] | None  # None if the request failed


@contextmanager
def clients(
    folder: Path, url: str, bodies: Sequence[object], *, number: int, timeout_s: float = 30
) -> Iterator[Callable[[], list[Response]]]:
    """Send the bodies in turn, each client after its previous answer. Yield after the first
    response; the yielded function ends the load and returns the responses."""
    (folder / "requests.json").write_text(json.dumps([url, bodies, number, timeout_s]))
    command = [sys.executable, "-m", "benchmarks.clients", str(folder)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def collect() -> list[Response]:
        process.communicate()  # closing stdin ends the load
        return [Response(*values) for values in json.loads((folder / "responses.json").read_text())]

    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield collect
    finally:
        process.kill()
        process.wait()


async def send_without_pause(
    url: str, bodies: Sequence[object], number: int, timeout_s: float
) -> list[Response]:
    """Run the clients until stdin is closed. Print a line after the first response."""
    responses: list[Response] = []
    over = asyncio.Event()

    async def client(session: aiohttp.ClientSession, index: int) -> None:
        while not over.is_set():
            body = index % len(bodies)
            index += number
            answer = None
            begun = time.monotonic()
            try:
                async with session.post(url, json=bodies[body]) as reply:
                    reply.raise_for_status()
                    answer = await reply.json()
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                print(f"a request failed: {type(error).__name__}: {error}", file=sys.stderr)
            ended = time.monotonic()
            responses.append(Response(ended, ended - begun, body, answer))
            if len(responses) == 1:
                print("started", flush=True)

    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        tasks = [asyncio.create_task(client(session, index)) for index in range(number)]
        await asyncio.to_thread(sys.stdin.read)
        over.set()
        await asyncio.gather(*tasks)
    return responses


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    given = json.loads((folder / "requests.json").read_text())
    sent = asyncio.run(send_without_pause(*given))
    (folder / "responses.json").write_text(json.dumps(sent))
