"""JSON Schemas are reduced to the forms that a grammar expresses; others are refused with the
place."""

import contextlib
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.config.formats.json_schema import (
    DEFINITIONS,
    KEYWORDS,
    MAX_PROPERTIES,
    supported_schema,
)

OTHER_NAMES = ["type", "$ref", "enum", "const", "anyOf", "a", "title", "oneOf"]
NAMES = st.sampled_from(
    [*sorted(set().union(*KEYWORDS.values())), *KEYWORDS, *DEFINITIONS, *OTHER_NAMES]
)
REFERENCES = st.sampled_from(["#", "#/$defs/a", "#/definitions/a", "#/$defs/", "#/a"])
TEXTS = NAMES | REFERENCES | st.sampled_from(["a|b", "(", ""])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
SUBSCHEMAS = st.builds(lambda target: {"$ref": target}, REFERENCES)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


def tagged(*values: str) -> dict[str, Any]:
    """Return a member of a tagged union."""
    return {"properties": {"tag": {"enum": list(values)}, "more": {}}, "required": ["tag"]}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"properties": {"b": True, "a": {}}, "required": ["a", "a"]},
            {
                "type": "object",
                "properties": {"b": {}, "a": {}},
                "required": ["a"],
                "additionalProperties": False,
            },
        ),
        (
            {"$ref": "#/definitions/x", "definitions": {"x": {"items": {"$ref": "#"}}}},
            {
                "$ref": "#/definitions/x",
                "definitions": {"x": {"type": "array", "items": {"$ref": "#"}}},
            },
        ),
        (
            {"type": "string", "nullable": True, "$id": "a", "x-order": 1, "discriminator": {}},
            {"type": "string"},
        ),
        ({"enum": [2**53, 1e300, True]}, {"enum": [2**53, 1e300, True]}),
        (
            {"type": "number", "minimum": 1, "maximum": 1},
            {"type": "number", "minimum": 1, "maximum": 1},
        ),
    ],
)
def test_a_supported_schema_has_one_form_for_each_subschema(schema: Any, expected: Any) -> None:
    supported = supported_schema(schema)
    assert supported == supported_schema(expected) == expected
    assert list(supported.get("properties", {})) == list(expected.get("properties", {}))


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/type", {"type": "person"}),
        ("/type", {"type": []}),
        ("/properties/a/oneOf", {"properties": {"a": {"oneOf": [tagged("a"), tagged("b", "a")]}}}),
        ("/oneOf", {"oneOf": [tagged("a"), tagged("b") | {"required": []}]}),
        ("/oneOf", {"oneOf": [tagged("a"), True]}),
        ("/items", {"items": {"$id": "other", "type": "string"}}),
        ("#: each value", {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        (
            "#/$defs/a: each value",
            {
                "properties": {"optional": {"$ref": "#/$defs/a"}},
                "$defs": {
                    "a": {"items": {"$ref": "#/$defs/b"}, "minItems": 1},
                    "b": {"anyOf": [{"$ref": "#/$defs/c"}]},
                    "c": {"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]},
                },
            },
        ),
        ("", {"not": {}}),
        ("", {"type": "number", "multipleOf": 2}),
        ("", {"type": "string", "minimum": 2}),
        ("", {"type": "array", "uniqueItems": True}),
        ("", {"anyOf": [{}], "type": "string"}),
        ("/anyOf", {"anyOf": []}),
        ("/$ref", {"$ref": "#/$defs/a"}),
        ("", {"$ref": "https://example.com/schema"}),
        ("#", {"$ref": "#"}),
        ("#", {"anyOf": [{"anyOf": [{"$ref": "#"}, {}]}]}),
        (
            "#/$defs/a",
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {}]}, "b": {"$ref": "#/$defs/a"}},
            },
        ),
        (
            "#",
            {
                "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
                "$defs": {
                    "a": {"$ref": "#/$defs/b"},
                    "b": {"anyOf": [{"$ref": "#/$defs/c"}, {}]},
                    "c": {"$ref": "#"},
                },
            },
        ),
        (
            "/definitions",
            {
                "type": "array",
                "items": {},
                "$defs": {"a": {"$ref": "#/definitions/b"}},
                "definitions": 5,
            },
        ),
        ("/$defs", {"$ref": "#/$defs/a", "$defs": None}),
        ("/properties", {"properties": []}),
        ("/properties/a", {"properties": {"a": 3}}),
        ("/properties/a", {"properties": {"a": False}}),
        ("/required", {"properties": {"a": {}}, "required": ["b"]}),
        ("/enum", {"enum": []}),
        ("/enum", {"enum": [[1]]}),
        ("/enum", {"type": "string", "enum": [1]}),
        ("/const", {"type": "integer", "const": True}),
        ("", {"enum": list(range(1025))}),
        ("/maxLength", {"type": "string", "maxLength": -1}),
        ("/maxLength", {"type": "string", "maxLength": 10**9}),
        ("", {"type": "array", "minItems": 3, "maxItems": 2}),
        ("", {"type": "integer", "minimum": 2, "exclusiveMaximum": 2}),
        ("/minimum", {"type": "integer", "minimum": 1.5}),
        ("/minimum", {"type": "number", "minimum": "1"}),
        ("/maximum", {"type": "number", "maximum": 1e300}),
        ("/minimum", {"type": "number", "minimum": float("nan")}),
        ("", {"type": "number", "minimum": 2, "maximum": 1.5}),
        ("/items", {"items": {"type": "number", "minimum": 1, "exclusiveMaximum": 1}}),
        ("", {"type": "number", "exclusiveMinimum": 1, "minimum": 0, "maximum": 1}),
        ("", {"type": "number", "minimum": 1e-07, "maximum": 2e-07}),
        ("/enum", {"enum": [1, float("nan")]}),
        ("/const", {"const": -float("inf")}),
        ("/items/const", {"items": {"const": 2**53 + 1}}),
        ("", {"enum": ["\ud800"]}),
        ("", {"properties": {"\ud800": {}}}),
        ("/pattern", {"type": "string", "pattern": "(?=a)"}),
        ("", {"type": "string", "pattern": "a", "maxLength": 3}),
        ("", {"properties": {str(n): {} for n in range(MAX_PROPERTIES + 1)}}),
        ("", {"description": "a" * 20000}),
    ],
)
def test_other_schemas_are_refused_with_the_path(path: str, schema: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(path) or r"\w"):
        supported_schema(schema)


@given(
    st.dictionaries(NAMES, JSON, max_size=4),
    st.dictionaries(
        st.sampled_from(DEFINITIONS), SCALARS | JSON | st.fixed_dictionaries({"a": SUBSCHEMAS})
    ),
)
def test_arbitrary_json_has_no_other_error(
    schema: dict[str, Any], definitions: dict[str, Any]
) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(supported_schema(schema | definitions), dict)


def test_a_schema_with_many_levels_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="16 levels"):
        supported_schema(schema)


def long_chain(size: int) -> dict[str, Any]:
    """Return definitions each of which refers to the next."""
    chain: dict[str, Any] = {str(row): {"$ref": f"#/$defs/{row + 1}"} for row in range(size)}
    return {"$ref": "#/$defs/0", "$defs": chain | {str(size): {}}}


def long_class(size: int, negation: str = "") -> dict[str, Any]:
    """Return a pattern of one class of characters without neighbours."""
    chars = "".join(map(chr, range(0x100, 0x100 + 2 * size, 2)))
    return {"type": "string", "pattern": f"[{negation}{chars}]"}


@pytest.mark.parametrize("schema_of", [long_chain, long_class, partial(long_class, negation="^")])
def test_the_steps_grow_with_the_size_of_a_schema_and_not_with_its_square(
    schema_of: Callable[[int], dict[str, Any]],
) -> None:
    def num_steps(size: int) -> int:
        """Return the number of calls, those of the library included."""
        events: list[str] = []
        sys.setprofile(lambda _frame, event, _arg: events.append(event))
        try:
            supported_schema(schema_of(size))
        finally:
            sys.setprofile(None)
        return len(events)

    num_steps(8)
    assert num_steps(240) < 2.2 * num_steps(120)
