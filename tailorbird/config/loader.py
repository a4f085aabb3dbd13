"""Read a recipe from YAML and apply overrides."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tailorbird.config.base import RecipeError
from tailorbird.config.recipe import Recipe


def load_recipe(path: str | Path, *, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file. An override is `section.key=value`, where the value is YAML.

    Raises RecipeError with one line per invalid field.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}; give the path of a YAML file") from None
    return parse_recipe(content, path=path, overrides=overrides)


def parse_recipe(text: bytes, *, path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Parse a recipe like `load_recipe`. `path` appears only in error messages."""
    try:
        content = yaml.safe_load(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {path} must be a mapping of sections, not {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}:\n" + "\n".join(_describe(fault) for fault in error.errors())) from None


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as YAML with all overrides and defaults. The text loads as the same recipe."""
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
        mapping[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML: {error}") from None


def _describe(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        return f"  {path}: no such field; remove it or correct its name"
    if fault["type"] == "missing":
        return f"  {path}: this field is required"
    value = "" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
    return f"  {path}: {fault['msg'].removeprefix('Value error, ')}{value}"
