"""The OpenAPI document at `/openapi.json`, and the same as a page for people at `/docs`, which needs no script."""

import html
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from recipes.schema import ServingSection
from serving.http import HTML, ID, JSON, Route
from serving.openapi import NO_EFFECT, openapi
from serving.style import STYLE

_KEYED = " Keys go into the header <code>Authorization: Bearer KEY</code>."
_CSS = """
code, pre { font: .85rem/1.5 ui-monospace, monospace; }
pre { background: var(--panel); border-radius: .3rem; padding: .7rem 1rem; overflow-x: auto; white-space: pre-wrap; }
a { color: var(--chosen); }
nav ul { list-style: none; padding: 0; margin: 1rem 0 0; }
section { border-top: 1px solid var(--line); margin-top: 1.6rem; padding-top: 1.2rem; }
h2 { font-size: 1.1rem; } h3 { font-size: .85rem; color: var(--soft); font-weight: 600; margin: 1.1rem 0 .3rem; }
h2 code { font-size: 1.05rem; } .method { color: var(--soft); font-weight: 600; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 400; width: 15rem; } th .soft { display: block; }
@media (max-width: 34rem) { td, th { display: block; width: auto; } th { border: 0; padding-bottom: 0; } }
@media print { body { max-width: none; } section, tr { break-inside: avoid; } }
"""


def documented(routes: Mapping[str, Route], *, section: ServingSection) -> dict[str, Route]:
    """The routes, and two more that tell of all of them."""

    @cache
    def document() -> dict[str, Any]:
        return openapi(every, section=section)

    async def as_json(_body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, json.dumps(document(), ensure_ascii=False).encode()

    async def as_page(_body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, page(document())

    every = {
        **routes,
        "/openapi.json": Route("GET", as_json, open=True),
        "/docs": Route("GET", as_page, open=True, content_type=HTML),
    }
    return every


def page(document: Mapping[str, Any]) -> bytes:
    """The document for people: each route, how it is called and with which fields; then the types that they name."""
    operations = [(path, method, found) for path, item in document["paths"].items() for method, found in item.items()]
    types = {name: schema for name, schema in document["components"]["schemas"].items() if "properties" in schema}
    contents, routes = "", ""
    refusals: dict[str, Any] = {}
    for path, method, told in operations:
        contents += f'<li><a href="#{told["operationId"]}"><code>{path}</code></a> {_prose(told["summary"])}</li>'
        routes += _route(path, method, told, types=types)
        refusals |= {status: answer for status, answer in told["responses"].items() if _is_refusal(answer)}
    title = html.escape(document["info"]["title"])
    keyed = "securitySchemes" in document["components"]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}: the API</title>
<style>{STYLE}{_CSS}</style>
</head>
<body>
<h1>{title}: the API</h1>
<p>{_prose(document["info"]["description"])}{_KEYED if keyed else ""}</p>
<p class="soft">For programs: <a href="openapi.json">openapi.json</a>. In the examples <code>$URL</code> is this page's
address without <code>/docs</code>.</p>
<nav><ul>{contents}<li><a href="#errors">Errors</a></li><li><a href="#types">Types</a></li></ul></nav>
{routes}<section id="errors"><h2>Errors</h2>
<p>All are an <a href="#ErrorBody">ErrorBody</a>, whose message says what was given and what is allowed.</p>
{_table((f"<code>{status}</code>", "", _prose(told["description"])) for status, told in sorted(refusals.items()))}
</section>
<section id="types"><h2>Types</h2>
{"".join(_type(name, schema) for name, schema in sorted(types.items()))}</section>
</body>
</html>
""".encode()


def _route(path: str, method: str, operation: Mapping[str, Any], *, types: dict[str, Any]) -> str:
    """A route, with the fields that it takes: that type is told here, and is taken out of `types`."""
    asked = operation.get("requestBody", {}).get("content", {}).get(JSON)
    takes = ""
    if asked:
        name = asked["schema"]["$ref"].rsplit("/", 1)[-1]
        takes = _type(name, types.pop(name)) if name in types else f"<p>Takes {_kind(asked['schema'])}, as above.</p>"
    answers = [f"<p>{_answer(status, answer)}</p>" for status, answer in operation["responses"].items()
               if not _is_refusal(answer)]  # fmt: skip
    refused = [f"<code>{status}</code>" for status, answer in operation["responses"].items() if _is_refusal(answer)]
    return f"""<section id="{operation["operationId"]}">
<h2><span class="method">{method.upper()}</span> <code>{path}</code></h2>
<p>{_prose(operation["summary"])}.</p>
<pre>{html.escape(_curl(path, asked, method=method, key="security" in operation))}</pre>
{takes}{"".join(answers)}
<p class="soft">Errors: {", ".join(refused)}</p>
</section>
"""


def _is_refusal(answer: Mapping[str, Any]) -> bool:
    return "ErrorBody" in answer["content"].get(JSON, {}).get("schema", {}).get("$ref", "")


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    told = []
    for content_type, found in answer["content"].items():
        kind = _kind(found["schema"]) if "$ref" in found["schema"] else f"<code>{content_type.split(';')[0]}</code>"
        told.append(
            f"{kind}{': ' + _prose(found['schema']['description']) if 'description' in found['schema'] else ''}"
        )
    return f"Answers <code>{status}</code> with {'; or '.join(told)}"


def _curl(path: str, asked: Mapping[str, Any] | None, *, method: str, key: bool) -> str:
    verb = "-X POST " if method == "post" and not asked else ""
    parts = [f'curl -s {verb}"$URL{path.replace(ID, "$ID")}"', *(['-H "Authorization: Bearer $KEY"'] if key else [])]
    return " \\\n  ".join([*parts, *([f"-d {shlex.quote(json.dumps(asked['example']))}"] if asked else [])])


def _type(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    fields = sorted(schema["properties"].items(), key=lambda item: item[0] not in required)
    rows = [
        (f"<code>{field}</code>", _kind(told, optional=field not in required), _told(told))
        for field, told in fields
        if NO_EFFECT not in told
    ]
    told = f"<p>{_prose(schema['description'])}</p>" if "description" in schema else ""
    idle = [_idle(field, told) for field, told in fields if NO_EFFECT in told]
    more = f'<p class="soft">Without effect: {", ".join(idle)}.</p>' if idle else ""
    return f'<h3 id="{name}">{name}</h3>{told}{_table(rows)}{more}\n'


def _idle(field: str, schema: Mapping[str, Any]) -> str:
    value = f" (only {html.escape(json.dumps(schema['enum'][0]))})" if "enum" in schema else ""
    return f"<code>{field}</code>{value}"


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Of a name, its type and what is said of it, each as HTML."""
    lines = [f'<tr><th>{name} <span class="soft">{kind}</span></th><td>{told}</td></tr>' for name, kind, told in rows]
    return f"<table>{''.join(lines)}</table>"


def _told(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    said = f" Default <code>{html.escape(json.dumps(default))}</code>." if default is not None else ""
    return _prose(schema.get("description", "")) + said


def _kind(schema: Mapping[str, Any], *, optional: bool = False) -> str:
    """A type in a few words, as HTML; one with fields of its own as a link to them."""
    if optional:  # that null may stand for absence need not be said
        parts = [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]
        return f"{_kind({'anyOf': parts} if parts else schema)}, optional"
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " or ".join(html.escape(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    kind = {"array": "list", "boolean": "true or false"}.get(schema.get("type", ""), schema.get("type", "anything"))
    inner = schema.get("items") or schema.get("additionalProperties")
    return f"{kind} of {_kind(inner)}" if isinstance(inner, dict) else str(kind)


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
