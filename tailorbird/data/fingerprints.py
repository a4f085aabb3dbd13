"""Fingerprints of rows: 8-byte hashes of what a user wrote, by which a row is known in any data
set."""

import hashlib
import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import regex
from numpy.typing import NDArray

from tailorbird import storage
from tailorbird.data.parquet import open_parquet
from tailorbird.data.rows import Conversation, DataError, Rows, text_of, trained_turns
from tailorbird.data.splits import normalise

HASH_BYTES = 8  # among 10 million rows, two have the same hash with a probability of 3e-6
COLUMN = "fingerprint"
Hashes = NDArray[np.uint64]
INVISIBLE = regex.compile(r"\p{Cf}+")  # zero-width characters among others
BETWEEN_WORDS = regex.compile(r"[^\p{L}\p{M}\p{N}]+")  # marks belong to the letters of many scripts


def user_texts(rows: Rows) -> tuple[str, ...]:
    """Return what the user wrote in each row: the text, or all turns of the user in a conversation.

    A conversation without a turn of the user has its whole text.
    """
    return tuple(map(_user_text, rows.turns))


def _user_text(conversation: Conversation) -> str:
    users = tuple(turn for turn in conversation if turn[0] == "user")
    return text_of(users or conversation)


def letters_and_digits(text: str) -> str:
    """Return the words of a text, casefolded, with letters and digits only and one space between
    two words.

    Punctuation, white space, zero-width characters and case make no row new. A text without letters
    and digits is returned as `normalise` returns it.
    """
    normalised = normalise(text)
    words = BETWEEN_WORDS.sub(" ", INVISIBLE.sub("", normalised))
    return words.strip() or normalised


def fingerprints(texts: Iterable[str]) -> Hashes:
    """Return the hash of each text [N], by its letters and digits."""
    return np.frombuffer(b"".join(map(_fingerprint, texts)), dtype="<u8")


def _fingerprint(text: str) -> bytes:
    words = letters_and_digits(text).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(words, digest_size=HASH_BYTES).digest()


def trained_fingerprints(train: Rows) -> Hashes:
    """Return the hash of each text that is trained on; a conversation has one for each turn that is
    trained on."""
    return fingerprints(user_texts(trained_turns(train)))


def save_fingerprints(uri: str, hashes: Hashes) -> None:
    """Write the distinct hashes, sorted, as a Parquet file with the column `fingerprint`."""
    distinct = np.sort(pa.array(hashes).unique())  # `np.unique` takes ten times as long
    sink = io.BytesIO()
    encoding = {COLUMN: "DELTA_BINARY_PACKED"}  # sorted hashes take two thirds of 8 bytes
    pq.write_table(
        pa.table({COLUMN: distinct}), sink, use_dictionary=False, column_encoding=encoding
    )
    storage.write_bytes(uri, sink.getvalue())


def load_fingerprints(uri: str) -> Hashes:
    """Return the hashes that `save_fingerprints` wrote; raise DataError for any other file."""
    with open_parquet(uri, columns=(COLUMN,)) as file:
        column = file.read(columns=[COLUMN])[COLUMN]
    if column.type != pa.uint64() or column.null_count:
        raise DataError(
            f"{uri}: the column {COLUMN!r} is no column of uint64 without nulls; restore it from a "
            "copy"
        )
    # `to_numpy` would import pandas.
    return np.asarray(np.from_dlpack(column.combine_chunks()), dtype=np.uint64)
