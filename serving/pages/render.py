"""Serve the page of a task with its script, and the OpenAPI document as JSON and as a page."""

import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, Undefined

from serving.http.asgi import HTML, ID, JAVASCRIPT, JSON, Page, Route
from serving.http.openapi import Schema, openapi
from serving.http.security_headers import page_policy
from tailorbird.config.serving import ServingConfig
from tailorbird.pages.environment import environment

PageName = Literal["classify", "chat"]
TEMPLATES = Path(__file__).parent / "templates"


def page_routes(name: PageName) -> dict[str, Route]:
    """Return the routes of the page for trying a model, and of its script."""

    async def as_page(_body: bytes, _request_id: str) -> tuple[int, Page]:
        return 200, render_page(name)

    async def as_script(_body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, read_script(name)

    return {
        "/": Route("GET", as_page, open=True, content_type=HTML),
        "/page.js": Route("GET", as_script, open=True, content_type=JAVASCRIPT),
    }


@cache
def render_page(name: PageName) -> Page:
    """Return a page without variables. The page is rendered once."""
    return _page(_templates().get_template(f"{name}.html").render())


@cache
def read_script(name: PageName) -> bytes:
    """Return the script of a page: the part that all pages share, then its own."""
    return b"".join((TEMPLATES / f"{part}.js").read_bytes() for part in ("shared", name))


def with_api_docs(routes: Mapping[str, Route], *, config: ServingConfig) -> dict[str, Route]:
    """Return the routes plus `/openapi.json` and `/docs`, which describe all routes."""

    @cache
    def document() -> Schema:
        return openapi(all_routes, config=config)

    async def as_json(_body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, json.dumps(document(), ensure_ascii=False).encode()

    @cache
    def page() -> Page:
        return render_docs(document())

    async def as_page(_body: bytes, _request_id: str) -> tuple[int, Page]:
        return 200, page()

    docs = {
        "/openapi.json": Route("GET", as_json, open=True),
        "/docs": Route("GET", as_page, open=True, content_type=HTML),
    }
    all_routes = {**routes, **docs}
    return all_routes


def render_docs(document: Mapping[str, Any]) -> Page:
    """Return an OpenAPI document as an HTML page without scripts."""
    return _page(_templates().get_template("docs.html").render(document=document))


def _page(html: str) -> Page:
    return Page(html.encode(), page_policy(html))


@cache
def _templates() -> Environment:
    templates = environment(TEMPLATES, undefined=Undefined)  # fields of a schema are optional
    templates.filters["curl"] = _curl
    return templates


def _curl(operation: Mapping[str, Any], path: str, method: str) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get(JSON)
    verb = "-X POST " if method == "post" and not body else ""
    parts = [f'curl -s {verb}"$URL{path.replace(ID, "$ID")}"']
    parts += ['-H "Authorization: Bearer $KEY"'] if "security" in operation else []
    parts += [f"-d {shlex.quote(json.dumps(body['example']))}"] if body else []
    return " \\\n  ".join(parts)
