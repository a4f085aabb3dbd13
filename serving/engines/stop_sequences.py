"""Between tokens and the client: what of an answer may be shown while it grows, the same however it arrives."""

from collections.abc import Sequence
from typing import NamedTuple

REPLACEMENT_CHARACTER = "\ufffd"
"""What a decoder writes for a character that it has not all bytes of."""


class VisibleText(NamedTuple):
    """The part of an answer that stands, whatever follows."""

    text: str
    stopped: bool
    """Whether a stop text ended it."""


def visible_text(decoded: str, *, stops: Sequence[str], ended: bool, stripped: bool = True) -> VisibleText:
    """Of the text decoded so far: whole characters, nothing from a stop text on, and where `stripped`, no white space
    at either end.

    Each result begins with the results before it, and the last is what the whole text gives at once: so of two stop
    texts the one that is complete first counts, and what may yet become one is held back.
    """
    found = [(decoded.find(stop) + len(stop), -len(stop)) for stop in stops if stop in decoded]
    if found:
        end, length = min(found)
        decoded = decoded[: end + length]
    elif not ended:
        decoded = decoded.rstrip(REPLACEMENT_CHARACTER)
        decoded = decoded[: len(decoded) - max((_partial_match(decoded, stop) for stop in stops), default=0)]
    return VisibleText(decoded.strip() if stripped else decoded, bool(found))


def _partial_match(text: str, stop: str) -> int:
    """How many characters at the text's end are the beginning of a stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
