"""The pieces of the report's page: style, tables and plots as HTML and SVG, everything given to them escaped."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #fff; --panel: #f5f7f9;
  --bar: #9fb6cc; --chosen: #2f6f9f; --go: #1d7a46; --stay: #8a5a00; --unsure: #8c2f5b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #9aa7b6; --line: #343e4a; --paper: #14191f;
  --panel: #1c232b; --bar: #46607a; --chosen: #6fb1e0; --go: #5cc98b; --stay: #e0ab4d; --unsure: #e58ab5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p, ul { margin: .4rem 0; } ul { padding-left: 1.2rem; } small, .soft { color: var(--soft); font-size: .85rem; }
.verdict { border-left: .3rem solid var(--tone); background: var(--panel); padding: .9rem 1rem; margin: 1rem 0; }
.verdict strong { color: var(--tone); font-size: 1.25rem; }
.FINE_TUNE { --tone: var(--go); } .STAY { --tone: var(--stay); } .INSUFFICIENT_EVIDENCE { --tone: var(--unsure); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td small { display: block; white-space: nowrap; }
th.plot { width: 42%; } .facts th { width: 34%; }
.wide table td, .wide table th { overflow-wrap: normal; }
svg { display: block; width: 100%; } .bar { fill: var(--bar); } .chosen .bar { fill: var(--chosen); }
.whisker { stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.guide { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; vector-effect: non-scaling-stroke; }
.scale { display: flex; justify-content: space-between; }
details { margin: .6rem 0; } summary { cursor: pointer; }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; font-size: .8rem; }
@media (max-width: 34rem) { body { padding: 1rem .8rem 2rem; } th.plot { width: 26%; } table { font-size: .85rem; } }
"""


def document(title: str, *, sections: Sequence[str]) -> str:
    """A whole page that loads nothing and runs nothing; sections are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Escaped for HTML, attributes included."""
    return html.escape(str(value), quote=True)


def section(title: str, *parts: str) -> str:
    """A heading and HTML parts."""
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(value: str, *, soft: bool = False) -> str:
    """Text as a paragraph."""
    return f"<p{' class=soft' if soft else ''}>{text(value)}</p>"


def bullets(values: Sequence[str]) -> str:
    """Texts as a list."""
    return "<ul>" + "".join(f"<li>{text(value)}</li>" for value in values) + "</ul>"


def table(headers: Sequence[str], *, rows: Sequence[Sequence[str]], row_classes: Sequence[str] = ()) -> str:
    """A table that scrolls sideways in itself; cells are HTML, a header `plot:x` makes a wide column headed x."""
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
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values as a table of two columns."""
    rows = "".join(
        f"<tr><th scope=row>{text(name.replace('_', ' '))}</th><td>{text(plain(value))}</td></tr>\n"
        for name, value in values.items()
    )
    return f"<table class=facts><tbody>{rows}</tbody></table>"


def plain(value: Any) -> str:
    """A value of JSON as people read it."""
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(plain(item) for item in value)
    return str(value)


def folded(title: str, *, value: Any) -> str:
    """JSON that is shown when asked for."""
    content = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>"


def bar(value: float, *, interval: tuple[float, float], label: str) -> str:
    """A bar from 0 to `value`, of 0 to 1, with its interval as a whisker."""
    low, high = (100 * min(max(end, 0.0), 1.0) for end in interval)
    whisker = "".join(
        f'<line class="whisker" x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1}" y2="{y2}"/>'
        for x1, x2, y1, y2 in ((low, high, 10, 10), (low, low, 6, 14), (high, high, 6, 14))
    )
    return (
        f'<svg viewBox="0 0 100 20" preserveAspectRatio="none" height="20" role="img" aria-label="{text(label)}">'
        f'<rect class="bar" x="0" y="3" width="{100 * value:.2f}" height="14"/>{whisker}</svg>'
    )


def gain_plot(gain: float, *, interval: tuple[float, float], minimum: float) -> str:
    """The gain with its interval on an axis that holds 0 and the minimum gain."""
    ends = [min(interval[0], 0.0), max(interval[1], minimum, 0.0)]
    margin = 0.08 * (ends[1] - ends[0] or 0.01)
    left, span = ends[0] - margin, ends[1] - ends[0] + 2 * margin

    def place(share: float) -> str:
        return f"{100 * (share - left) / span:.2f}"

    guides = "".join(f'<line class="guide" x1="{place(x)}" x2="{place(x)}" y1="0" y2="40"/>' for x in (0.0, minimum))
    low, high = interval
    return (
        '<svg viewBox="0 0 100 40" preserveAspectRatio="none" height="40" role="img" '
        f'aria-label="gain {100 * gain:.2f} points, interval {100 * low:.2f} to {100 * high:.2f}">'
        f'{guides}<g class="chosen"><rect class="bar" x="{place(low)}" y="14" '
        f'width="{100 * (high - low) / span:.2f}" height="12"/></g>'
        f'<line class="whisker" x1="{place(gain)}" x2="{place(gain)}" y1="8" y2="32"/></svg>'
        f"<p class=soft>Bar: the interval, {100 * low:+.2f} to {100 * high:+.2f} points; line in it: the gain, "
        f"{100 * gain:+.2f}; dashed: 0 and the minimum gain, {100 * minimum:+.2f}.</p>"
    )
