"""A stand-in for Ray's dashboard on the loopback interface."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.Response]]


async def serve_version(_: web.Request) -> web.Response:
    return web.json_response({"ray_version": "2.60.0"})


@contextmanager
def running_dashboard(
    *, version: Handler = serve_version, tls: SSLContext | None = None
) -> Iterator[str]:
    """Run a server with the page of the version in a thread during the block, and yield its
    address."""

    async def start() -> web.AppRunner:
        pages = web.Application()
        pages.router.add_get("/api/version", version)
        runner = web.AppRunner(pages)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        return runner

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
