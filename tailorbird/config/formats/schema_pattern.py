"""Regular expressions in JSON Schemas, rewritten into constructs whose grammars are exact."""

import re
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

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
_CLASSES: dict[str, Ranges] = {
    "d": ((0x30, 0x39),),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "s": ((0x20, 0x20),),
}
_PUNCTUATION = frozenset("./-_+*?()[]{}^$|,:;@#%&=<>!~' ")
_COUNT = re.compile(r"\{(\d{1,6})(,(\d{1,6})?)?\}")


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
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    parser = _Parser(pattern)
    part = parser.alternatives()
    if parser.position < len(pattern):
        raise ValueError(f"has {pattern[parser.position]!r} without an opening parenthesis")
    if not part.size:
        raise ValueError("matches only the empty text; use `const`")
    return part.text


class _Parser:
    """A recursive descent over a pattern that Python has accepted."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.position = 0

    def _next(self) -> str:
        if self.position < len(self._pattern):
            return self._pattern[self.position]
        return ""

    def alternatives(self) -> _Part:
        parts = [self._sequence()]
        while self._next() == "|":
            self.position += 1
            parts.append(self._sequence())
        if len(parts) > 1:
            return _joined(parts, "|")
        return parts[0]

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._next() not in ("", "|", ")"):
            if self._is_outer_anchor():
                self.position += 1
                continue
            parts.append(self._repeated(self._element()))
        return _joined(parts, "")

    def _is_outer_anchor(self) -> bool:
        """Return True for an anchor at the start or end of the pattern, which full matches do not
        need."""
        char = self._next()
        is_last = self.position == len(self._pattern) - 1
        if char in ("^", "$") and not (self.position == 0 if char == "^" else is_last):
            raise ValueError("has an anchor inside; use `^` at the start and `$` at the end only")
        return char in ("^", "$")

    def _element(self) -> _Part:
        char = self._next()
        if char == "(":
            rest = self._pattern[self.position :]
            if rest.startswith("(?") and not rest.startswith("(?:"):
                raise ValueError(
                    "has a group with options, a name or a look-around; use plain groups"
                )
            self.position += 3 if rest.startswith("(?:") else 1
            inside = self.alternatives()
            self.position += 1
            return inside._replace(text=f"({inside.text})")
        if char == "[":
            return _class_part(self._class())
        if char == ".":
            self.position += 1
            return _class_part(PLAIN)
        return _class_part(self._char_or_escape())

    def _char_or_escape(self) -> Ranges:
        """Return the ranges of a character or an escape, in or outside of a class."""
        char = self._next()
        self.position += 1
        if char == "\\":
            char = self._next()
            self.position += 1
            if char in _CLASSES:
                return _CLASSES[char]
            if char not in _PUNCTUATION:
                raise ValueError(f"has the escape \\{char}, which is not supported")
        return ((ord(char), ord(char)),)

    def _class(self) -> Ranges:
        self.position += 1
        negated = self._next() == "^"
        self.position += negated
        if self._next() in ("]", ""):
            raise ValueError("has a class that starts with `]`; escape it")
        ranges: list[tuple[int, int]] = []
        while self._next() != "]":
            first = self._char_or_escape()
            if self._next() == "-" and self._pattern[self.position + 1 : self.position + 2] != "]":
                self.position += 1
                last = self._char_or_escape()
                first = ((first[0][0], last[-1][1]),)
            ranges += first
        self.position += 1
        if negated:
            return _others(_merged(ranges))
        return tuple(ranges)

    def _repeated(self, part: _Part) -> _Part:
        """Return an element with its quantifier; counts and options are written as alternatives."""
        char = self._next()
        text = part.text
        if char not in ("*", "+", "?", "{"):
            return part
        if not part.size:
            raise ValueError("repeats the empty text; remove the quantifier")
        count = _COUNT.match(self._pattern, self.position)
        if char == "{" and count is None:
            raise ValueError("has a brace that is no count; escape it")
        self.position = count.end() if count else self.position + 1
        if self._next() in ("*", "+", "?", "{"):
            raise ValueError("has a lazy, possessive or double quantifier; remove it")
        if char in ("*", "+"):
            return part._replace(text=text + char)
        fewest, most = (0, 1) if count is None else (int(count[1]), int(count[3] or count[1]))
        unlimited = count is not None and bool(count[2]) and not count[3]
        copies = most + unlimited
        size = part.size * copies
        _require_small(size, (len(text) + 3) * copies)  # before the text is written
        optional = most - fewest  # nested, because a flat sequence of options is ambiguous and slow
        if unlimited:
            ending = text + "*"
        else:
            ending = f"({text}" * optional + "|)" * optional
        return _Part(text * fewest + ending, size)


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
    kept = _merged(
        (max(first, low), min(last, high))
        for (first, last), (low, high) in product(ranges, PLAIN)
        if first <= high and low <= last
    )
    if not kept:
        if ranges:
            given = f"the character {chr(ranges[0][0])!r}, which"
        else:
            given = "a class of characters that"
        raise ValueError(f"has {given} JSON writes as an escape; leave it out")
    text = "".join(
        _char(first) + (f"-{_char(last)}" if last > first else "") for first, last in kept
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


def _others(ranges: Ranges) -> Ranges:
    """Return the ranges of all other characters."""
    starts = [0, *(last + 1 for _, last in ranges)]
    ends = [*(first - 1 for first, _ in ranges), MAX_CODE]
    return tuple((start, end) for start, end in zip(starts, ends, strict=True) if start <= end)
