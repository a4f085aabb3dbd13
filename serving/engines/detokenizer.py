"""Incremental detokenization: the text of a growing answer, without decoding the whole answer for
each token."""

from collections.abc import Sequence
from typing import Any

from serving.engines.stop_sequences import REPLACEMENT_CHARACTER

CONTEXT_TOKENS = 6
"""Number of decoded tokens that are decoded again before new ones. Some tokenizers drop a space at
the beginning of a text, and a character of UTF-8 has up to 4 bytes, which can be tokens of their
own."""
MAX_HELD_CHARS = 4
"""Maximum number of replacement characters at the end that can still change: one per byte of an
incomplete character. Earlier ones are invalid bytes."""
INCOMPLETE_TOKENS = 4 * MAX_HELD_CHARS
"""Number of tokens that are kept while the last characters are incomplete. A replacement character
is shown for up to 3 bytes, and before them the decoder needs 3 more to find the limits of
characters."""


class IncrementalDetokenizer:
    """A decoder of tokens that arrive in pieces. Joined, its results equal the text of all tokens.

    Each call decodes its new tokens and a window of at most `2 * INCOMPLETE_TOKENS` previous ones.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._skipped = {token for token, added_token in added.items() if added_token.special}
        self._window: list[int] = []
        self._num_returned = 0

    def add(self, tokens: Sequence[int], *, ended: bool) -> str:
        """Return the text that new tokens complete. A character that is incomplete is held back
        until `ended`."""
        self._window += self._visible(tokens)
        text = self._decoded()
        num_held = 0 if ended else _num_incomplete(text)
        new = text[self._num_returned : len(text) - num_held]
        self._num_returned = max(self._num_returned, len(text) - num_held)
        keep = INCOMPLETE_TOKENS if num_held else CONTEXT_TOKENS
        if len(self._window) > 2 * keep:
            del self._window[:-keep]
            self._num_returned = len(self._decoded()) - num_held
        return new

    def _visible(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens without special ones, which have no text and would take places in the
        window."""
        return [token for token in tokens if token not in self._skipped]

    def _decoded(self) -> str:
        if self._window:
            return str(self._tokenizer.decode(self._window, skip_special_tokens=True))
        return ""


def _num_incomplete(text: str) -> int:
    """Return the number of characters at the end of the text that a later token can change."""
    return min(len(text) - len(text.rstrip(REPLACEMENT_CHARACTER)), MAX_HELD_CHARS)
