"""Compare stored JSON with expected values, and read files that may be missing or damaged."""

import json
import math
from collections.abc import Iterator
from typing import TypeGuard

from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from tailorbird import storage

TOLERANCE = 1e-9  # of floats; on another machine, a library may sum in another order


def differences(stated: object, expected: object, *, at: str, other: str) -> Iterator[str]:
    """Yield a sentence for each JSON path at which two values differ; `other` introduces the
    expected value."""
    yield from _differences(
        to_jsonable_python(stated), to_jsonable_python(expected), at=at, other=other
    )


def _differences(stated: JsonValue, expected: JsonValue, *, at: str, other: str) -> Iterator[str]:
    if isinstance(stated, dict) and isinstance(expected, dict):
        for name in sorted(set(stated) | set(expected)):
            path = f"{at}.{name}" if at else name
            yield from _differences(
                stated.get(name, "missing"), expected.get(name, "missing"), at=path, other=other
            )
    elif isinstance(stated, list) and isinstance(expected, list) and len(stated) == len(expected):
        for index, (left, right) in enumerate(zip(stated, expected, strict=True)):
            yield from _differences(left, right, at=f"{at}.{index}", other=other)
    elif not _equal(stated, expected):
        yield f"{at} is {json.dumps(stated)} in evidence.json; {other} {json.dumps(expected)}"


def _equal(stated: JsonValue, expected: JsonValue) -> bool:
    if _is_number(stated) and _is_number(expected):
        return math.isclose(stated, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(stated) is type(expected) and stated == expected


def _is_number(value: JsonValue) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_content(uri: str) -> bytes | None:
    """Return the content of an object, or None if it does not exist."""
    if storage.exists(uri):
        return storage.read_bytes(uri)
    return None


def read_value(uri: str) -> JsonValue:
    """Return the JSON value of a file, or None if it does not exist or is not JSON."""
    try:
        value: JsonValue = json.loads(read_content(uri) or b"null")
    except ValueError:
        return None
    return value
