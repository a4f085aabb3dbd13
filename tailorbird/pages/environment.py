"""Jinja2 environments with autoescape; all pages share the components and the stylesheet in
`templates/`."""

import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Undefined
from markupsafe import Markup, escape

COMPONENTS = Path(__file__).parent / "templates"


def environment(folder: Path, *, undefined: type[Undefined] = StrictUndefined) -> Environment:
    """Return an environment with the templates of a folder and the shared ones; autoescape is on.

    By default, a name that is not defined raises UndefinedError.
    """
    templates = Environment(
        loader=FileSystemLoader([folder, COMPONENTS]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=undefined,
        extensions=["jinja2.ext.do"],
    )
    templates.filters["prose"] = prose
    return templates


def prose(text: str) -> Markup:
    """Return the text as HTML, with text in backticks marked as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def plain(value: object) -> str:
    """Return a JSON value in a readable format."""
    if value is None or value in ([], (), {}):
        return "none"
    if isinstance(value, bool):
        if value:
            return "yes"
        return "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if abs(value) < 1000:
            return f"{value:,.4g}"
        return f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(plain(item) for item in value)
    return str(value)
