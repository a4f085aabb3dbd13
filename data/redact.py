"""Before a text is written down: what names a person's accounts, numbers and addresses on the net, by patterns."""

import re

KINDS = (
    ("email", re.compile(r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")),
    ("address", re.compile(r"\b(?:https?://|www\.)[^\s<>\"']+", re.IGNORECASE)),
    ("address", re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")),
    ("address", re.compile(r"(?<![\w:])(?=(?:\w*:){3})(?:[0-9a-f]{1,4}:|:){2,8}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)),
    ("number", re.compile(r"\b[A-Z]{2}\d{2} ?[A-Z0-9]{0,4}(?: ?\d{2,4}){2,7}\w?\b", re.IGNORECASE)),
    ("number", re.compile(r"(?<!\w)\+?[A-Z]?\(?\d(?:[ .()/x-]{0,2}\d){5,}(?!\w)", re.IGNORECASE)),
)
"""Each is bounded or begins at a word alone, so that no text takes longer than its length.

Numbers are those of six digits and more, with whatever stands between them: telephones, cards, accounts, insurances,
licences; and account numbers in the international form, which have letters."""


def redacted(text: str) -> str:
    """The text with `[email]`, `[address]` and `[number]` in the place of such.

    By patterns alone, so names of people, streets and places stay: what must not be kept at all must not be logged.
    """
    for kind, pattern in KINDS:
        text = pattern.sub(f"[{kind}]", text)
    return text
