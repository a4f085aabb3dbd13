"""Fingerprints of rows: 8-byte hashes of what a user wrote, by which a row is known in any data set."""

import hashlib
from collections.abc import Iterable

import numpy as np
import regex
from numpy.typing import NDArray

from tailorbird.data.rows import Rows
from tailorbird.data.splits import normalise

HASH_BYTES = 8  # among 10 million rows, two have the same hash with a probability of 3e-6
Hashes = NDArray[np.uint64]
INVISIBLE = regex.compile(r"\p{Cf}+")  # zero-width characters among others
BETWEEN_WORDS = regex.compile(r"[^\p{L}\p{M}\p{N}]+")  # marks belong to the letters of many scripts


def user_texts(rows: Rows) -> tuple[str, ...]:
    """Return what the user wrote in each row: the text, or all turns of the user in a conversation.

    A conversation without a turn of the user has its whole text.
    """
    if rows.conversations is None:
        return rows.texts
    texts = []
    for text, conversation in zip(rows.texts, rows.conversations, strict=True):
        turns = [content for role, content in conversation if role == "user"]
        texts.append("\n".join(turns) if turns else text)
    return tuple(texts)


def letters_and_digits(text: str) -> str:
    """Return the words of a text, casefolded, with letters and digits only and one space between two words.

    Punctuation, white space, zero-width characters and case make no row new. A text without letters and digits is
    returned as `normalise` returns it.
    """
    normalised = normalise(text)
    words = BETWEEN_WORDS.sub(" ", INVISIBLE.sub("", normalised))
    return words.strip() or normalised


def fingerprints(texts: Iterable[str]) -> Hashes:
    """Return the hash of each text [N], by its letters and digits."""
    digests = [
        hashlib.blake2b(letters_and_digits(text).encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8")
