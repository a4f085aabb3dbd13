"""Search the training rows of a chat task for those that are nearest to a text.

Texts are compared by TF-IDF of character n-grams and, if the index has them, by embeddings.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix, vstack
from sklearn.feature_extraction.text import HashingVectorizer

from tailorbird.data.chat_template import examples_of
from tailorbird.data.rows import Conversation, DataError, Rows, messages_of, query_of, trained_turns
from tailorbird.data.splits import normalise, subsample

if TYPE_CHECKING:
    from tailorbird.models.retrieval.text_encoder import TextEncoder

NUM_COLUMNS = 1 << 20
"""Columns into which n-grams are hashed, which limits the vocabulary."""
NGRAM_LENGTHS = (3, 4)
"""Characters of the n-grams, which do not cross words.

On two data sets, 3 to 5 characters, 2 to 4 and 2 to 5 give no better answers and take longer.
Words alone give worse ones.
"""
MAX_ROWS = 100_000
"""A random sample of more training rows is indexed."""
MAX_CHARACTERS = 200_000_000
"""The same, for the characters of all conversations and answers (approximately)."""
MAX_TEXT_CHARACTERS = 2_000
"""Characters of a text that are compared."""
MAX_TEXT_NGRAMS = 256
"""N-grams that represent a text: those with the largest weights.

An n-gram of a row takes 8 bytes, so `MAX_ROWS` rows take at most 205 MB.
"""
MAX_POSTINGS = 200_000
"""Pairs of an n-gram and a row that a search reads.

The rarest n-grams are used first, and the rarest one in any case.
"""
CHUNK_TEXTS = 512  # texts whose n-grams are in memory at once

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
SCHEMA = pa.schema(
    {
        "turns": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "answer": pa.string(),
    }
)
"""The turns of `example_turns` before the answer, and the answer."""


class Neighbours(NamedTuple):
    """The nearest rows of an index, nearest first."""

    rows: IntArray
    similarities: NDArray[np.float64]  # from 0 to 1


@dataclass(frozen=True)
class Postings:
    """TF-IDF weights of rows by n-gram."""

    columns: NDArray[np.int32]  # [C] columns of the n-grams in the rows, ascending
    idf: FloatArray  # [C + 1] inverse document frequencies; the last one is that of unknown n-grams
    matrix: csc_matrix  # [N, C] weights; each row has length 1

    @cached_property
    def _terms(self) -> NDArray[np.int32]:
        """[NUM_COLUMNS] position of each column in `columns`; C for unknown n-grams."""
        terms = np.full(NUM_COLUMNS, len(self.columns), dtype=np.int32)
        terms[self.columns] = np.arange(len(self.columns))
        return terms

    def vectors(self, texts: Sequence[str]) -> csr_matrix:
        """Return the weights of the known n-grams of texts, [N, C].

        All n-grams of a text, known and unknown, have length 1 together. The largest
        `MAX_TEXT_NGRAMS` weights are scaled to the length of all known n-grams.
        """
        counts = _counts(texts)
        terms = self._terms[counts.indices]
        weights = (1 + np.log(counts.data)) * self.idf[terms]
        for start, end in pairwise(counts.indptr):
            row = weights[start:end]
            total = np.linalg.norm(row)
            row[terms[start:end] == len(self.columns)] = 0
            known = np.linalg.norm(row)
            row[np.argsort(-row, kind="stable")[MAX_TEXT_NGRAMS:]] = 0
            row *= known / max(total * np.linalg.norm(row), np.finfo(np.float32).tiny)
        shape = (len(texts), len(self.idf))
        vectors = csr_matrix((weights, terms, counts.indptr), shape=shape)[:, :-1]
        vectors.eliminate_zeros()
        return vectors

    def similarities(self, text: str) -> NDArray[np.float64]:
        """Return the cosine of a text with each row, [N], from the rarest n-grams within
        `MAX_POSTINGS`."""
        vector = self.vectors([text])
        sizes = self.matrix.indptr[vector.indices + 1] - self.matrix.indptr[vector.indices]
        rarest = np.argsort(sizes, kind="stable")
        num_read = int(np.searchsorted(np.cumsum(sizes[rarest]), MAX_POSTINGS, side="right"))
        rarest = rarest[: max(1, num_read)]
        weights = vector.data[rarest].astype(np.float64)
        return np.asarray(self.matrix[:, vector.indices[rarest]] @ weights)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The embeddings of the rows of an index, and their weight in the similarity."""

    encoder: "TextEncoder"
    weight: float
    """Similarity of two texts: weight x cosine of the embeddings + (1 - weight) x cosine of the
    n-grams."""
    rows: FloatArray = field(repr=False)
    """[N, D], with length 1 and values that float16 represents exactly."""

    def similarities(self, text: str) -> NDArray[np.float64]:
        """Return the cosine of a text with each row, [N], at least 0; 0 for an empty text.

        The text is embedded alone, so the result does not depend on other texts.
        """
        [query] = self.encoder.embed([_compared(text)])
        cosines: NDArray[np.float64] = np.maximum(self.rows @ query, 0).astype(np.float64)
        return cosines


@dataclass(frozen=True, eq=False)
class RetrievalIndex:
    """Training rows of a chat task that can be searched. Rows with frequent answers come first."""

    postings: Postings = field(repr=False)
    table: pa.Table = field(repr=False)  # rows with the columns of `SCHEMA`
    embeddings: Embeddings | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def answer(self, row: int) -> str:
        """Return the answer of a row."""
        return str(self.table["answer"][int(row)].as_py())

    def turns(self, row: int) -> Conversation:
        """Return the turns of a row as an example (see `example_turns`)."""
        turns = self.table["turns"][int(row)].as_py()
        return (
            *((turn["role"], turn["content"]) for turn in turns),
            ("assistant", self.answer(row)),
        )

    def nearest(self, text: str, *, k: int) -> Neighbours:
        """Return the `k` nearest rows of a text or all if there are fewer.

        Rows with equal similarity are in the order of the index, so a text without known n-grams
        and embedding gets the most frequent answer.
        """
        scores = self.similarities(text)
        num_rows = min(k, len(scores))
        candidates = np.flatnonzero(scores >= np.partition(scores, -num_rows)[-num_rows])
        rows = candidates[np.argsort(-scores[candidates], kind="stable")[:num_rows]]
        return Neighbours(rows, np.minimum(scores[rows], 1.0))

    @property
    def weight(self) -> float:
        """Weight of the embeddings in the similarity; 0 without embeddings."""
        return 0.0 if self.embeddings is None else self.embeddings.weight

    def similarities(self, text: str) -> NDArray[np.float64]:
        """Return the similarity of a text to each row, [N], from 0 to 1 (up to rounding)."""
        similarities = np.zeros(len(self))
        if self.embeddings is not None:
            similarities += self.weight * self.embeddings.similarities(text)
        if self.weight < 1:
            similarities += (1 - self.weight) * self.postings.similarities(text)
        return similarities


def build_index(rows: Rows, *, seed: int) -> RetrievalIndex:
    """Return the index of training rows of a chat task.

    Each turn that a fine-tuned model is trained on is a row with the turns before it. Rows with
    the same query and answer are indexed once, and rows that are no examples (`example_turns`) are
    not indexed. Raises DataError if no row can be indexed.
    """
    rows = trained_turns(rows)
    rows = rows.take([row for row, turns in enumerate(examples_of(rows)) if turns])
    if not len(rows):
        raise DataError(
            "no training row has a turn of the user, so none can be retrieved; add rows with such "
            "a turn"
        )
    first: dict[tuple[str, str], int] = {}
    for position, (query, answer) in enumerate(zip(rows.queries, rows.labels, strict=True)):
        first.setdefault((normalise(query), answer), position)
    distinct = rows.take(list(first.values()))
    num_characters = sum(map(len, distinct.texts)) + sum(map(len, distinct.labels))
    size = min(MAX_ROWS, max(1, len(distinct) * MAX_CHARACTERS // max(1, num_characters)))
    sample = distinct.take(subsample(len(distinct), size=size, seed=seed))
    frequency = Counter(rows.labels)
    order = np.argsort([-frequency[answer] for answer in sample.labels], kind="stable")
    indexed = sample.take(order)
    return RetrievalIndex(_postings(indexed.queries), _table(indexed))


def embed_index(index: RetrievalIndex, *, encoder: "TextEncoder", weight: float) -> RetrievalIndex:
    """Return the index with the embeddings of its rows. Rows with the same text have the same
    embedding."""
    texts = [_compared(query_of(index.turns(row)[:-1])) for row in range(len(index))]
    distinct = list(dict.fromkeys(texts))
    vectors = encoder.embed(distinct).astype(np.float16).astype(np.float32)
    embeddings = dict(zip(distinct, vectors, strict=True))
    rows = np.stack([embeddings[text] for text in texts])
    return replace(index, embeddings=Embeddings(encoder, weight, rows))


def _table(rows: Rows) -> pa.Table:
    turns = [messages_of(turns[:-1]) for turns in examples_of(rows)]
    return pa.table({"turns": turns, "answer": rows.labels}, schema=SCHEMA)


def _postings(texts: Sequence[str]) -> Postings:
    """Return the postings of texts, which are hashed twice to keep no n-grams in memory."""
    chunks = [texts[start : start + CHUNK_TEXTS] for start in range(0, len(texts), CHUNK_TEXTS)]
    frequencies = np.zeros(NUM_COLUMNS, dtype=np.int64)
    for chunk in chunks:
        frequencies += np.bincount(_counts(chunk).indices, minlength=NUM_COLUMNS)
    columns = np.flatnonzero(frequencies).astype(np.int32)
    idf = np.log((1 + len(texts)) / (1 + np.append(frequencies[columns], 0))) + 1
    postings = Postings(columns, idf.astype(np.float32), csc_matrix((0, len(columns))))
    vectors = vstack([postings.vectors(chunk) for chunk in chunks], format="csr")
    return replace(postings, matrix=vectors.tocsc())


def _counts(texts: Sequence[str]) -> csr_matrix:
    """Return the number of occurrences of each n-gram in each text, [N, NUM_COLUMNS]."""
    grams = HashingVectorizer(
        analyzer="char_wb",
        ngram_range=NGRAM_LENGTHS,
        lowercase=False,
        norm=None,
        alternate_sign=False,
        n_features=NUM_COLUMNS,
        dtype=np.float32,
    )
    return grams.transform([normalise(_compared(text)) for text in texts])


def _compared(text: str) -> str:
    """Return the part of a text that is compared, without lone surrogates."""
    return text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode()
