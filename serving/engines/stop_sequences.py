"""Stop texts, and the part of a growing answer that can be sent to the client."""

from collections.abc import Sequence

REPLACEMENT_CHARACTER = "\ufffd"  # output of a decoder for a character with incomplete bytes


def visible_text(
    decoded: str, *, stops: Sequence[str], ended: bool, num_searched: int = 0
) -> tuple[str, bool]:
    """Return the part of an answer that no later token changes, and True if a stop text ended it.

    The part has complete characters and ends before the first stop text. It has no outer white
    space. For a growing answer, each result starts with the previous result, and the last result
    equals that of the whole text. Therefore, the first stop text is the one that is complete first,
    and a possible start of a stop text is held back. The first `num_searched` characters are known
    to contain no complete stop text.
    """
    starts = [
        (decoded.find(stop, max(0, num_searched - len(stop) + 1)), len(stop)) for stop in stops
    ]
    matches = [(start + length, -length) for start, length in starts if start >= 0]
    if matches:
        end, length = min(matches)
        decoded = decoded[: end + length]
    elif not ended:
        decoded = decoded.rstrip(REPLACEMENT_CHARACTER)
        decoded = decoded[
            : len(decoded) - max((_partial_match(decoded, stop) for stop in stops), default=0)
        ]
    return decoded.strip(), bool(matches)


def _partial_match(text: str, stop: str) -> int:
    """Return the number of characters at the end of the text that are the start of a stop text."""
    return next(
        (
            size
            for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        ),
        0,
    )
