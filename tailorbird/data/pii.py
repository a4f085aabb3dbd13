"""Redact e-mail addresses, network addresses and numbers in texts with regular expressions."""

import re
from collections.abc import Iterator

LOCAL = r"\w.!#$%&'*+/=?^`{|}~-"
JOIN = r" \t\u00a0\u2000-\u200a\u202f\u3000.()/x_\u2010\u2011\-"
"""Characters between the digits of a number: spaces, dots, brackets, slashes and hyphens."""
# characters that also separate the numbers of a range (2003–2011), and line breaks
DASH = r"\s\u2012-\u2015\u2212"
PATTERNS = (
    ("email", re.compile(rf"(?<![{LOCAL}])[{LOCAL}]++@[\w-]++(?:\.[\w-]++)++")),
    ("address", re.compile(r"\b(?:https?://|www\.)[^\s<>\"']+", re.IGNORECASE)),
    ("address", re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")),
    (
        "address",
        re.compile(
            r"(?<![\w:])(?=(?:\w*:){3})(?:[0-9a-f]{1,4}:|:){2,8}[0-9a-f]{0,4}(?![\w:])",
            re.IGNORECASE,
        ),
    ),
    (
        "number",
        re.compile(
            r"\b[A-Z]{2}\d{2}[\s_-]?[A-Z0-9]{0,4}(?:[\s_-]?\d{2,4}){2,7}\w?\b", re.IGNORECASE
        ),
    ),
    (
        "number",
        re.compile(
            r"\+?(?:(?<![A-Z])[A-Z])?\(?\d(?:"
            rf"(?:[,;{JOIN}{DASH}]{{0,3}}\d){{12,}}|"
            rf"(?:(?:[{JOIN}{DASH}]{{0,3}}|[,;])\d){{8,}}|"
            rf"(?:[{JOIN}]{{0,2}}\d){{5,}})",
            re.IGNORECASE,
        ),
    ),
)
"""Placeholders and patterns. Each pattern is bounded, possessive or anchored at a word, so matching
takes linear time.

A number has six or more digits: telephone, card, account, insurance, licence, record and
international bank account numbers. Dashes, line breaks and commas between digits are allowed only
in numbers of nine or more digits, and commas with spaces only in numbers of thirteen or more, so
that ranges, years and doses are kept."""

PIECE_CHARS = 1 << 15
GAP = re.compile(r"(?<!\S)[^\s\d]++\s(?=[^\s\d]++(?!\S))")
"""The end of a word before another word, both without digits. No match of `PATTERNS` crosses it:
white space in a match is at most three characters from the last digit before it and from the next
digit or, in bank accounts, next to one."""


def redact(text: str) -> str:
    """Replace e-mail addresses, URLs, IP addresses and numbers by `[email]`, `[address]` and
    `[number]`.

    Names of people, streets and cities are kept, so do not log texts that must not be stored.
    """
    return "".join(map(_redact_piece, pieces(text)))


def pieces(text: str) -> Iterator[str]:
    """Yield the pieces of a text that can be redacted separately, of about `PIECE_CHARS` in a text
    with many words.

    A regular expression keeps the GIL, and so stops other threads, until it has searched its
    string.
    """
    start = 0
    while len(text) - start > PIECE_CHARS and (gap := GAP.search(text, start + PIECE_CHARS)):
        yield text[start : gap.end()]
        start = gap.end()
    yield text[start:]


def _redact_piece(text: str) -> str:
    for placeholder, pattern in PATTERNS:
        text = pattern.sub(f"[{placeholder}]", text)
    return text


def is_redacted(text: str) -> bool:
    """Return True if a text contains a placeholder of `redact`. Two different texts may be equal
    after redaction."""
    return any(f"[{placeholder}]" in text for placeholder, _ in PATTERNS)
