"""Stop texts: which part of a growing answer a client may read already."""

from collections.abc import Sequence

REPLACEMENT_CHARACTER = "\ufffd"  # what a decoder writes for a character whose bytes are not complete


def visible_text(decoded: str, *, stops: Sequence[str], ended: bool, stripped: bool = True) -> tuple[str, bool]:
    """Return the part of an answer that no later token changes, and whether a stop text ended it: whole characters
    before the first stop text; if `stripped`, without outer white space.

    Each result begins with the previous results, and the last is that of the whole text. So the stop text that is
    complete first counts, and text that may become a stop text is held back.
    """
    matches = [(decoded.find(stop) + len(stop), -len(stop)) for stop in stops if stop in decoded]
    if matches:
        end, length = min(matches)
        decoded = decoded[: end + length]
    elif not ended:
        decoded = decoded.rstrip(REPLACEMENT_CHARACTER)
        decoded = decoded[: len(decoded) - max((_partial_match(decoded, stop) for stop in stops), default=0)]
    return decoded.strip() if stripped else decoded, bool(matches)


def _partial_match(text: str, stop: str) -> int:
    """Return how many characters at the end of the text begin a stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
