"""Routes of the console. A page is made in a thread, because it reads storage."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from serving.http.api_keys import KeyScope
from serving.http.asgi import HTML, JAVASCRIPT, REST, Page, Route, path_id
from serving.http.schemas import RequestError
from serving.http.security_headers import page_policy
from serving.limits import FairSlots, client_name
from tailorbird.storage.paths import TaskPaths

if TYPE_CHECKING:
    from tailorbird.console.site import Site

SCOPES: tuple[KeyScope, ...] = ("read", "admin")
THREADS = 2
"""Pages that are made at the same time. Python's pool has few threads, which reload the keys
too."""
Answer = Callable[[bytes, str], Awaitable[tuple[int, Page]]]


def console_routes(new_site: Callable[[], "Site"]) -> dict[str, Route]:
    """Return the routes of a console by path. `new_site` is called once, at the first request."""

    @cache
    def site() -> "Site":
        return new_site()

    def page(path: str | None) -> tuple[int, Page]:
        shown = site()
        # takes memory and seconds: only where it is used
        from tailorbird.console.site import page_at

        status, html = page_at(shown, path, now=datetime.now(UTC))
        return status, Page(html.encode(), page_policy(html))

    slots = FairSlots(THREADS)

    async def as_page(_body: bytes, _request_id: str) -> tuple[int, Page]:
        return await slots.run(partial(page, path_id.get() or None), client=client_name(), cost=1)

    async def script(_body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, read_script()

    route = Route("GET", as_page, scopes=SCOPES, content_type=HTML, browser=True)
    return {
        "/console/_live.js": Route("GET", script, open=True, content_type=JAVASCRIPT),
        "/console": route,
        f"/console/{REST}": route,
    }


@cache
def read_script() -> bytes:
    """Return the script that updates a page while a run is under way."""
    return (Path(__file__).parent / "templates" / "live.js").read_bytes()


def task_console(paths: TaskPaths, *, has_keys: bool) -> dict[str, Route]:
    """Return the console of a service, which shows the service's task only. Without API keys, it
    answers 404."""

    def new_site() -> "Site":
        if not has_keys:
            message = (
                "a service without API keys has no console; set serving.api_keys, or run "
                "`tailorbird console`"
            )
            raise RequestError(404, "no_console", message)
        from tailorbird.console.site import Site

        return Site(paths.registry, task=paths.name)

    return console_routes(new_site)
