"""Routes of the console. A page is made in a thread, because it reads storage."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from serving.http.asgi import HTML, JAVASCRIPT, REST, Page, Route, path_id
from serving.http.security_headers import page_policy
from tailorbird.console.site import Site, page_at


def console_routes(site: Site) -> dict[str, Route]:
    """Return the routes of a console by path."""
    script = (Path(__file__).parent / "templates" / "live.js").read_bytes()

    def page(path: str | None) -> tuple[int, Page]:
        status, html = page_at(site, path, now=datetime.now(UTC))
        return status, Page(html.encode(), page_policy(html))

    async def as_page(_body: bytes, _request_id: str) -> tuple[int, Page]:
        return await asyncio.to_thread(page, path_id.get() or None)

    async def as_script(_body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, script

    route = Route("GET", as_page, content_type=HTML)
    return {
        "/console/_live.js": Route("GET", as_script, content_type=JAVASCRIPT),
        "/console": route,
        f"/console/{REST}": route,
    }
