"""Control characters in texts of data, models and other services, which a terminal would obey."""

import re

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # for example, a color in an error of Ray
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 and C1 control characters, except tabs and line breaks, and characters that change the
direction of text."""


def printable(text: str) -> str:
    """Return the text without control sequences, and with U+FFFD in place of each other control
    character."""
    return _CONTROL.sub("\ufffd", _SEQUENCE.sub("", text))
