"""The recipe's reference page, made from the schema: `python -m recipes.reference > docs/recipe.md`."""

from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.schema import Distribution, Recipe, Section

HEAD = """# The recipe

One YAML file that the command line, a submitted job and the service read. Made from `recipes/schema.py` by
`python -m recipes.reference`; do not edit by hand. On the command line a field is changed as `section.key=value`.
"""


def reference() -> str:
    """The page in Markdown: a table a section."""
    inner = {name: field.annotation for name, field in Recipe.model_fields.items() if _section(field)}
    top = {name: field for name, field in Recipe.model_fields.items() if name not in inner}
    parts = [HEAD, _table("Top level", top)]
    for name, annotation in inner.items():
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        parts.append(_table(f"`{name}`", annotation.model_fields))
    parts.append(_table("A distribution, in `tuning.space`", Distribution.model_fields))
    return "\n".join(parts)


def _section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _table(title: str, fields: dict[str, FieldInfo]) -> str:
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(field)} | {field.description} |" for name, field in fields.items()
    ]
    return "\n".join([f"## {title}\n", "| field | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _kind(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str | int) for choice in choices):
        return " or ".join(f"`{choice}`" for choice in choices)
    name = getattr(field.annotation, "__name__", "") if not choices else str(field.annotation)
    return "`" + name.replace("recipes.schema.", "").replace(" | None", "").replace("|", "or") + "`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None or value in ({}, ()) else f"`{value}`"


if __name__ == "__main__":
    print(reference(), end="")
