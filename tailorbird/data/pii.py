"""Before a text is written down: what names a person's accounts, numbers and addresses on the net, by patterns."""

import re

LOCAL = r"\w.!#$%&'*+/=?^`{|}~-"
JOIN = r" \t\u00a0\u2000-\u200a\u202f\u3000.()/x_\u2010\u2011\-"
"""What stands between a number's digits: spaces, dots, brackets, slashes, hyphens."""
DASH = r"\s\u2012-\u2015\u2212"
"""What also joins two numbers to a range (2003 to 2011) or two lines."""
KINDS = (
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
"""Each is bounded, or gives back nothing of what it took, or begins at a word alone: no text takes longer than its
length.

Numbers are those of six digits and more, whatever letters stand before and after them: telephones, cards, accounts,
insurances, licences, records; and account numbers in the international form, which have letters. Dashes, lines
and commas between the digits count from nine digits on, and commas with spaces from thirteen, so that ranges, years and
doses stay."""


def redact(text: str) -> str:
    """The text with `[email]`, `[address]` and `[number]` in the place of such.

    By patterns alone, so names of people, streets and places stay: what must not be kept at all must not be logged.
    """
    for kind, pattern in KINDS:
        text = pattern.sub(f"[{kind}]", text)
    return text
