"""Number of values and names in a JSON text."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.http.json_values import has_more_values

TEXTS = st.text(alphabet='a,:[]{}"\\ \né0', max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
MANY = 1_000_000


def number_of_values(value: Any) -> int:
    """Return the number of values and names, as the JSON parser sees them."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(number_of_values, value.values()))
    return 1 + sum(map(number_of_values, value)) if isinstance(value, list) else 1


@given(value=VALUES, indent=st.sampled_from((None, 2)), ascii=st.booleans())
@example(value={"a": ["\\", '"', "[1, 2]", -1.5e3, None, {}, []]}, indent=2, ascii=False)
def test_values_and_names_are_counted_as_in_json(
    value: Any, indent: int | None, ascii: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii).encode()
    number = number_of_values(value)
    assert not has_more_values(text, number)
    assert has_more_values(text, number - 1)


@pytest.mark.parametrize("part", [b'"', b"[", b"{", b"1,", b"[],", b'"",', b'"":'])
def test_many_values_are_found_in_an_invalid_text(part: bytes) -> None:
    assert has_more_values(part * MANY, MANY // 3)
