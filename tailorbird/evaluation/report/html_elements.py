"""Elements of the HTML report; arguments are escaped unless the docstring says that they are HTML."""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from pydantic import BaseModel

from tailorbird.evaluation.verdict.formatting import points

TONES = {"passes": "passes", "fails": "fails", "not assessable": "open", "not applicable": "open"}


class Figures:
    """Values of the evidence as HTML elements with their path in evidence.json (`verdict.interval.0`)."""

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
        """Return each value of the mapping at a path by name, formatted by `plain`."""
        return {name: self(f"{path}.{name}", plain) for name in self._value(path)}

    def estimate(self, path: str, *, interval: str) -> str:
        """Return the difference at a path with its interval, in points."""
        low, high = self.items(interval, points)
        return f"{self(path, points)} ({low} to {high})"

    def state(self, path: str) -> str:
        """Return the state of a gate or a bound in its colour."""
        value = self._value(path)
        return f'<span class="{TONES[value]}" data-from="{text(path)}">{text(value)}</span>'

    def _value(self, path: str) -> Any:
        value = self._values
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value


def document(title: str, *, sections: Sequence[str]) -> str:
    """Return a page without scripts and external resources; sections are HTML."""
    page = Template((files(__package__) / "page.html").read_text("utf-8"))
    return page.substitute(title=text(title), sections="\n".join(sections))


def text(value: object) -> str:
    """Return a value escaped for HTML, attributes included."""
    return html.escape(str(value), quote=True)


def section(title: str, *parts: str) -> str:
    """Return a section with a heading and HTML parts; empty parts are omitted."""
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
    """Return a table that scrolls horizontally; cells are HTML, and a header `plot:x` makes a wide column `x`."""
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
    """Return a table of two columns with names and values; values are HTML."""
    rows = "".join(
        f"<tr><th scope=row>{text(name.replace('_', ' '))}</th><td>{value}</td></tr>\n"
        for name, value in values.items()
    )
    return f"<table class=facts><tbody>{rows}</tbody></table>"


def plain(value: object) -> str:
    """Return a JSON value in a readable format."""
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
    """Return a value as JSON in a collapsed element."""
    content = json.dumps(value.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return details(title, f"<pre>{text(content)}</pre>")


def details(title: str, content: str) -> str:
    """Return HTML in a collapsed element."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"
