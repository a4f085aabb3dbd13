"""Regular expressions in JSON Schemas, rewritten into constructs whose grammars are exact."""

import re
from collections.abc import Iterable
from itertools import product
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

Ranges = tuple[tuple[int, int], ...]  # first and last code points, in order, without overlaps
MAX_CHARS = 256
MAX_SIZE = 256
"""Maximum number of characters and classes of a pattern, each counted as often as it is
repeated."""
MAX_TEXT = 16_384
"""Maximum number of characters of a rewritten pattern."""
MAX_CODE = 0x10FFFF  # of a character

PLAIN: Ranges = (
    (0x20, 0x21),
    (0x23, 0x5B),
    (0x5D, 0x7E),
    (0xA1, 0x2027),
    (0x202A, 0xD7FF),
    (0xE000, 0xFEFE),
    (0xFF00, 0xFFFD),
    (0x10000, 0x10FFFF),
)
"""Characters that JSON writes without an escape, and that do not end a line: without controls, `"`
and `\\`."""
_CLASSES: dict[object, Ranges] = {
    ops.CATEGORY_DIGIT: ((0x30, 0x39),),
    ops.CATEGORY_WORD: ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    ops.CATEGORY_SPACE: ((0x20, 0x20),),
}
_OTHER_DIALECT = re.compile(r"\\(?![dws])[A-Za-z0-9]|\[\^?\]")
"""Escapes of letters and digits, and a class that starts with `]`: constructs that ECMA-262,
the dialect of JSON Schema, reads differently from Python or not at all."""


_ONE_CHARACTER = (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN)


class _Part(NamedTuple):
    text: str
    size: int


def exact_pattern(pattern: object) -> str:
    """Return a pattern without anchors, each of whose full matches is a match of the given one.

    The result has groups, alternatives, classes, `*` and `+` only, because xgrammar makes inexact
    automata of some other constructs. Its characters need no escape in JSON. Raises ValueError,
    which names the construct, for a pattern that cannot be rewritten.
    """
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= MAX_CHARS:
        raise ValueError(f"must be a regular expression of 1 to {MAX_CHARS} characters")
    other = _OTHER_DIALECT.search(pattern.replace(r"\\", "--"))
    if other is not None:
        raise ValueError(f"has {other[0]}, which is not supported; escape punctuation only")
    try:
        parsed = _parser.parse(pattern)
        part = _sequence(_without_outer_anchors(list(parsed)))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if parsed.state.flags != re.UNICODE:
        raise ValueError("has a group with options; use plain groups")
    if not part.size:
        raise ValueError("matches only the empty text; use `const`")
    return part.text


def _without_outer_anchors(items: list[Any]) -> list[Any]:
    """Return a parsed pattern without the anchors at its start and end, which full matches do not
    need."""
    if items and items[0] == (ops.AT, ops.AT_BEGINNING):
        items = items[1:]
    if items and items[-1] == (ops.AT, ops.AT_END):
        items = items[:-1]
    return items


def _sequence(items: Iterable[Any]) -> _Part:
    parts = [_element(operator, value) for operator, value in items]
    return _joined(parts, "")


def _element(operator: object, value: Any) -> _Part:
    """Return one element of Python's parsed pattern."""
    if operator is ops.BRANCH:
        alternatives = _joined([_sequence(branch) for branch in value[1]], "|")
        return alternatives._replace(text=f"({alternatives.text})")
    if operator is ops.SUBPATTERN and not value[1] and not value[2]:
        return _sequence(value[3])
    if operator in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        part = _sequence(value[2])
        if len(value[2]) > 1 or value[2][0][0] not in _ONE_CHARACTER:
            part = part._replace(text=f"({part.text})")
        return _repeated(part, fewest=value[0], most=value[1])
    if operator is ops.AT:
        raise ValueError("has an anchor inside; use `^` at the start and `$` at the end only")
    if operator in _ONE_CHARACTER:
        return _class_part(_ranges(operator, value))
    raise ValueError(f"has {operator}, which is not supported; use plain groups and quantifiers")


def _ranges(operator: object, value: Any) -> Ranges:
    """Return the characters of an element that matches one character."""
    if operator is ops.ANY:
        return PLAIN
    if operator is ops.LITERAL:
        return ((value, value),)
    if operator is ops.NOT_LITERAL:
        return _complement(((value, value),))
    if operator is ops.RANGE:
        return (value,)
    if operator is ops.CATEGORY:
        return _CLASSES[value]
    assert operator is ops.IN, operator
    ranges: list[tuple[int, int]] = []
    for member in value:
        if member[0] is not ops.NEGATE:
            ranges += _ranges(*member)
    if value[0][0] is ops.NEGATE:
        return _complement(_merged(ranges))
    return tuple(ranges)


def _repeated(part: _Part, *, fewest: int, most: int) -> _Part:
    """Return a repeated element; counts and options are written as alternatives."""
    if not part.size:
        raise ValueError("repeats the empty text; remove the quantifier")
    is_unlimited = most is ops.MAXREPEAT
    text = part.text
    if is_unlimited and fewest <= 1:
        return part._replace(text=text + ("+" if fewest else "*"))
    copies = fewest + 1 if is_unlimited else most
    size = part.size * copies
    _require_small(size, (len(text) + 3) * copies)  # before the text is written
    if is_unlimited:
        return _Part(f"{text * fewest}{text}*", size)
    optional = most - fewest  # nested, because a flat sequence of options is ambiguous and slow
    return _Part(text * fewest + f"({text}" * optional + "|)" * optional, size)


def _joined(parts: list[_Part], separator: str) -> _Part:
    """Return parts in turn, or with the separator `|` as alternatives."""
    size = sum(part.size for part in parts)
    _require_small(size, sum(len(part.text) + len(separator) for part in parts))
    return _Part(separator.join(part.text for part in parts), size)


def _require_small(size: int, num_chars: int) -> None:
    if size > MAX_SIZE:
        raise ValueError(
            f"repeats {size:,} characters or more, but at most {MAX_SIZE} are supported; lower the "
            "counts"
        )
    if num_chars > MAX_TEXT:
        raise ValueError("repeats long classes or groups too often; lower the counts")


def _class_part(ranges: Ranges) -> _Part:
    """Return the class of the characters in both `ranges` and `PLAIN`; raise ValueError if there is
    none."""
    plain = _merged(
        (max(first, low), min(last, high))
        for (first, last), (low, high) in product(ranges, PLAIN)
        if first <= high and low <= last
    )
    if not plain:
        raise ValueError("has only characters that JSON writes as an escape; leave them out")
    text = "".join(
        _char(first) + (f"-{_char(last)}" if last > first else "") for first, last in plain
    )
    return _Part(f"[{text}]", 1)


def _char(code: int) -> str:
    if chr(code) in "[]^-\\":
        return f"\\{chr(code)}"
    return chr(code)


def _merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in order, without overlaps."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    """Return the ranges of all other characters."""
    starts = [0, *(last + 1 for _, last in ranges)]
    ends = [*(first - 1 for first, _ in ranges), MAX_CODE]
    return tuple((start, end) for start, end in zip(starts, ends, strict=True) if start <= end)
