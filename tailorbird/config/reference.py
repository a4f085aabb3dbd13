"""The recipe's reference page, made from the schema: `python -m tailorbird.config.reference > docs/recipe.md`."""

import re
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tailorbird.config.base import ConfigSection
from tailorbird.config.recipe import Recipe
from tailorbird.config.tuning import Distribution

HEAD = """# The recipe

One YAML file that the command line, a submitted job and the service read. Made from `tailorbird/config/` by
`python -m tailorbird.config.reference`; do not edit by hand. On the command line a field is changed
as `section.key=value`.
"""


def reference() -> str:
    """Return the page in Markdown, with a table for each section."""
    parts = [HEAD, *_tables("Top level", model=Recipe, prefix="")]
    parts.append(_table("A distribution, in `tuning.space`", Distribution.model_fields))
    return "\n".join(parts)


def _tables(title: str, *, model: type[BaseModel], prefix: str) -> list[str]:
    """Return a table of the model's own fields, then those of its sections, each named by its full path."""
    inner = {name: config for name, field in model.model_fields.items() if (config := _section(field))}
    own = {name: field for name, field in model.model_fields.items() if name not in inner or prefix}
    parts = [_table(title, own)]
    for name, config in inner.items():
        parts += _tables(f"`{prefix}{name}`", model=config, prefix=f"{prefix}{name}.")
    return parts


def _section(field: FieldInfo) -> type[ConfigSection] | None:
    for choice in (field.annotation, *get_args(field.annotation)):
        kind = get_args(choice)[0] if get_origin(choice) is Annotated else choice
        if isinstance(kind, type) and issubclass(kind, ConfigSection):
            return kind
    return None


def _table(title: str, fields: dict[str, FieldInfo]) -> str:
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(field)} | {' '.join((field.description or '').split())} |"
        for name, field in fields.items()
    ]
    return "\n".join([f"## {title}\n", "| field | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _kind(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    if _section(field):
        return "`int` or section" if any(int in get_args(choice) for choice in choices) else "section"
    if choices and all(isinstance(choice, str | int) for choice in choices):
        return " or ".join(f"`{choice}`" for choice in choices)
    name = getattr(field.annotation, "__name__", "") if not choices else str(field.annotation)
    return "`" + re.sub(r"tailorbird\.config\.\w+\.", "", name).replace(" | None", "").replace("|", "or") + "`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, ConfigSection):
        return "its defaults"
    return "" if value is None or value in ({}, ()) else f"`{value}`"


if __name__ == "__main__":
    print(reference(), end="")
