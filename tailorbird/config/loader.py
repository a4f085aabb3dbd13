"""Read a recipe from YAML and apply overrides."""

from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic import ValidationError

from tailorbird.config.base import SECRET, RecipeError
from tailorbird.config.recipe import Recipe

_SHORT = Repr()
"""Representations of bounded length: with aliases, a short file contains a value of any length."""
_SHORT.maxlist = 6
_SHORT.maxdict = 6
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 400


def load_recipe(path: str | Path, *, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file. An override is `section.key=value`, where the value is YAML.

    Raises RecipeError with one line per invalid field.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(
            f"recipe {path}: {error.strerror or error}; give the path of a YAML file"
        ) from None
    return parse_recipe(content, path=path, overrides=overrides)


def parse_recipe(text: bytes, *, path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Parse a recipe like `load_recipe`. `path` appears only in error messages."""
    try:
        content = _read_yaml(text.decode())
    except ValueError as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(
            f"recipe {path} must be a mapping of sections, not {type(content).__name__}"
        )
    for override in overrides:
        _apply(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(
            f"recipe {path}:\n" + "\n".join(_describe(fault) for fault in error.errors())
        ) from None


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as YAML with all overrides and defaults. The text loads as the same
    recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r} must have the form section.key=value")
    *sections, last = key.split(".")
    mapping = content
    for name in sections:
        mapping = mapping.setdefault(name, {})
        if not isinstance(mapping, dict):
            raise RecipeError(f"override {override!r}: {name!r} is not a section")
    try:
        mapping[last] = _read_yaml(text)
    except ValueError as error:
        raise RecipeError(
            f"override {_short(override)}: the value is not valid YAML: {error}"
        ) from None


def _read_yaml(text: str) -> Any:
    """Return the content of a YAML document; raise ValueError if it is invalid."""
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # PyYAML's constructors raise ValueError, AttributeError, IndexError and others.
    except Exception as error:
        raise ValueError(str(error)) from None


def _describe(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        return f"  {path}: no such field; remove it or correct its name"
    if fault["type"] == "missing":
        return f"  {path}: this field is required"
    hidden = isinstance(fault["input"], dict) or fault["type"] == SECRET
    value = "" if hidden else f" (given: {_short(fault['input'])})"
    return f"  {path}: {fault['msg'].removeprefix('Value error, ')}{value}"


def _short(value: Any) -> str:
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python converts integers to text only up to a number of digits
        return f"a value of type {type(value).__name__} that is too long"
