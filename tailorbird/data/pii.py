"""Redact e-mail addresses, network addresses and numbers in texts, by regular expressions."""

import re

LOCAL = r"\w.!#$%&'*+/=?^`{|}~-"
JOIN = r" \t\u00a0\u2000-\u200a\u202f\u3000.()/x_\u2010\u2011\-"
"""Characters between the digits of a number: spaces, dots, brackets, slashes, hyphens."""
DASH = r"\s\u2012-\u2015\u2212"  # characters that also join two numbers, as a range (2003 to 2011), or two lines
PATTERNS = (
    ("email", re.compile(rf"(?<![{LOCAL}])[{LOCAL}]++@[\w-]++(?:\.[\w-]++)++")),
    ("address", re.compile(r"\b(?:https?://|www\.)[^\s<>\"']+", re.IGNORECASE)),
    ("address", re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")),
    ("address", re.compile(r"(?<![\w:])(?=(?:\w*:){3})(?:[0-9a-f]{1,4}:|:){2,8}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)),
    ("number", re.compile(r"\b[A-Z]{2}\d{2}[\s_-]?[A-Z0-9]{0,4}(?:[\s_-]?\d{2,4}){2,7}\w?\b", re.IGNORECASE)),
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
"""Each is bounded, possessive, or anchored at a word, so matching takes linear time.

Numbers have six or more digits, with any letters around them: telephone, card, account, insurance, licence and record
numbers; and international bank account numbers. Dashes, line breaks and commas between digits count from nine digits
on, commas with spaces from thirteen, so that ranges, years and doses are kept."""


def redact(text: str) -> str:
    """Replace matches by `[email]`, `[address]` and `[number]`.

    Names of people, streets and cities are kept: do not log what must not be stored at all.
    """
    for placeholder, pattern in PATTERNS:
        text = pattern.sub(f"[{placeholder}]", text)
    return text
