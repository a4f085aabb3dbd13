"""Elements of the HTML report: its style, tables and figures; every argument is escaped unless it is called HTML."""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tailorbird.evaluation.verdict.formatting import points

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #596373; --line: #d9dee5; --paper: #fff; --panel: #f5f7f9;
  --bar: #9fb6cc; --chosen: #2f6f9f; --go: #1d7a46; --stay: #8a5a00; --unsure: #8c2f5b; --both: #5b4bb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #9aa7b6; --line: #343e4a; --paper: #14191f;
  --panel: #1c232b; --bar: #46607a; --chosen: #6fb1e0; --go: #5cc98b; --stay: #e0ab4d; --unsure: #e58ab5;
  --both: #aba0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, ul { margin: .4rem 0; } ul { padding-left: 1.2rem; } small, .soft { color: var(--soft); font-size: .85rem; }
.verdict { border-left: .3rem solid var(--tone); background: var(--panel); padding: .9rem 1rem; margin: 1rem 0; }
.verdict strong { color: var(--tone); font-size: 1.25rem; }
.FINE_TUNE { --tone: var(--go); } .STAY { --tone: var(--stay); } .INSUFFICIENT_EVIDENCE { --tone: var(--unsure); }
.HYBRID { --tone: var(--both); }
.passes { color: var(--go); } .fails { color: var(--unsure); font-weight: 600; } .open { color: var(--stay); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td small { display: block; white-space: nowrap; }
th.plot { width: 38%; min-width: 6rem; } .facts { table-layout: fixed; } .facts th { width: 34%; }
.wide table td, .wide table th { overflow-wrap: normal; }
svg { display: block; width: 100%; } svg.square { max-width: 22rem; } svg text { fill: var(--soft); font-size: 11px; }
.bar { fill: var(--bar); } .chosen .bar, .bar.chosen { fill: var(--chosen); }
.dot { fill: var(--bar); } .dot.chosen { fill: var(--chosen); }
.path { fill: none; stroke: var(--bar); stroke-width: 1.5; } .path.chosen { stroke: var(--chosen); }
.whisker { stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.frame { fill: none; stroke: var(--line); vector-effect: non-scaling-stroke; }
.guide { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; vector-effect: non-scaling-stroke; }
.key { display: inline-block; width: .7rem; height: .7rem; background: var(--bar); margin: 0 .3rem 0 .6rem; }
.key.chosen { background: var(--chosen); }
details { margin: .6rem 0; } summary { cursor: pointer; }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; font-size: .8rem; white-space: pre-wrap; }
@media (max-width: 34rem) { body { padding: 1rem .8rem 2rem; } th.plot { width: 20%; min-width: 3.5rem; }
  table { font-size: .82rem; } th, td { padding-right: .4rem; } }
@page { margin: 1.6cm; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --panel: #f2f2f2;
  --bar: #9fb6cc; --chosen: #2f6f9f; --go: #1d7a46; --stay: #8a5a00; --unsure: #8c2f5b; --both: #5b4bb0; }
  body { max-width: none; padding: 0; font-size: 10pt; } .wide { overflow: visible; } table { font-size: 8.5pt; }
  h2, h3 { break-after: avoid; } .verdict, tr, svg, figure { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
TONES = {"passes": "passes", "fails": "fails", "not assessable": "open"}


class Figures:
    """Figures of the evidence as HTML, each with the path of its value in evidence.json (`verdict.interval.0`)."""

    def __init__(self, evidence: BaseModel) -> None:
        self._values: Any = evidence.model_dump(mode="json")

    def __call__(self, path: str, form: str | Callable[[Any], str] = "") -> str:
        """Return the value at a path, formatted by a format specification or a function."""
        value = self._value(path)
        content = form(value) if callable(form) else format(value, form)
        return f'<span data-from="{text(path)}">{text(content)}</span>'

    def items(self, path: str, form: str | Callable[[Any], str] = "") -> list[str]:
        """Return each item of the list at a path."""
        return [self(f"{path}.{index}", form) for index in range(len(self._value(path)))]

    def facts(self, path: str) -> dict[str, str]:
        """Return each value of the mapping at a path by its name, as people read it."""
        return {name: self(f"{path}.{name}", plain) for name in self._value(path)}

    def estimate(self, path: str, *, interval: str) -> str:
        """Return the difference at a path with its interval, in points."""
        low, high = self.items(interval, points)
        return f"{self(path, points)} ({low} to {high})"

    def state(self, path: str) -> str:
        """Return a gate's or a bound's state in its colour."""
        value = self._value(path)
        return f'<span class="{TONES[value]}" data-from="{text(path)}">{text(value)}</span>'

    def _value(self, path: str) -> Any:
        value = self._values
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value


def document(title: str, *, sections: Sequence[str]) -> str:
    """Return a whole page that loads nothing and runs nothing; sections are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return a value escaped for HTML, attributes included."""
    return html.escape(str(value), quote=True)


def section(title: str, *parts: str) -> str:
    """Return a heading and HTML parts; those that are empty are left out."""
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def paragraph(value: str, *, soft: bool = False) -> str:
    """Return text as a paragraph."""
    return f"<p{' class=soft' if soft else ''}>{text(value)}</p>"


def bullets(values: Sequence[str]) -> str:
    """Return texts as a list."""
    return list_items([text(value) for value in values])


def list_items(items: Sequence[str]) -> str:
    """Return items, which are HTML, as a list."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def table(headers: Sequence[str], *, rows: Sequence[Sequence[str]], row_classes: Sequence[str] = ()) -> str:
    """Return a table that scrolls sideways; cells are HTML, a header `plot:x` makes a wide column headed x."""
    heads = "".join(
        f"<th class=plot>{text(header.removeprefix('plot:'))}</th>"
        if header.startswith("plot:")
        else f"<th>{text(header)}</th>"
        for header in headers
    )
    classes = row_classes or [""] * len(rows)
    body = "".join(
        f'<tr class="{text(name)}">' + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n"
        for row, name in zip(rows, classes, strict=True)
    )
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table></div>"


def pairs(values: Mapping[str, str]) -> str:
    """Return names and values, which are HTML, as a table of two columns."""
    rows = "".join(
        f"<tr><th scope=row>{text(name.replace('_', ' '))}</th><td>{value}</td></tr>\n"
        for name, value in values.items()
    )
    return f"<table class=facts><tbody>{rows}</tbody></table>"


def plain(value: object) -> str:
    """Return a value of JSON as people read it."""
    if value is None or value in ([], (), {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(plain(item) for item in value)
    return str(value)


def folded(title: str, *, value: BaseModel) -> str:
    """Return a value as JSON that is hidden until it is opened."""
    content = json.dumps(value.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return details(title, f"<pre>{text(content)}</pre>")


def details(title: str, content: str) -> str:
    """Return HTML that is hidden until it is opened."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"
