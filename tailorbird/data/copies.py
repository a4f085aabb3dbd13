"""Find copies of texts: the same letters and digits or, in longer texts, almost the same words.

Near copies are found by a prefix filter (Chaudhuri, Ganti and Kaushik 2006): two sets of words that
are similar share one of the rarest words of each. Each text is listed under these words, so no near
copy is missed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tailorbird.data.fingerprints import letters_and_digits
from tailorbird.data.rows import Rows, document_keys

SIMILARITY = 0.75
"""Minimum weighted Jaccard similarity of the words of near copies. In Banking77, 97% of the
questions of ten words or more with one word replaced are near copies of the question, and 99% of
those with one word more or less."""
RARE_SHARE = 0.05
"""A word in at most this share of the texts has the weight 1, and a word in all texts, as of a
fixed instruction, a weight near 0. Between them, the weight is proportional to the logarithm of the
share."""
MIN_WEIGHT = 5.0
"""Minimum weight of a text with near copies. In a shorter text, each word can make another item,
such as "fracture of left femur" and "fracture of right femur"."""
ROUNDING = 1e-9  # a sum of weights depends on their order


@dataclass(frozen=True)
class CopyIndex:
    """Texts among which copies are found. A text is known by its position, and equal texts by the
    first position."""

    first: Mapping[str, int]  # position by letters and digits
    weights: Mapping[str, float]  # of the words
    ranks: Mapping[str, int]  # of the words, the rarest first
    words: dict[int, frozenset[str]]  # words of each text that can have near copies
    sizes: dict[int, float]  # weights of these texts
    listed: dict[tuple[str, str], list[int]]
    """Positions of these texts by label and by each of their rarest words."""


@dataclass(frozen=True)
class _Words:
    """The words of a text that an index contains, and the weight of all its words."""

    known: list[str]
    num_rarest: int
    """Number of the first words, the rarest, of which a near copy has at least one; 0 if there can
    be no near copy."""
    size: float


def copy_index(texts: Sequence[str], *, labels: Sequence[str]) -> CopyIndex:
    """Return an index of texts with their labels, or with the answers of a chat task."""
    first: dict[str, int] = {}
    first_of_label: dict[tuple[str, str], int] = {}
    for position, (text, label) in enumerate(zip(texts, labels, strict=True)):
        key = letters_and_digits(text)
        first.setdefault(key, position)
        first_of_label.setdefault((key, letters_and_digits(label)), position)

    counts = Counter[str]()
    for key in first:
        counts.update(set(key.split()))
    once = 1 / (1 + len(first))  # share of a word in one text
    full = log(max(RARE_SHARE, once))
    weights = {word: min(1.0, log(count * once) / full) for word, count in counts.items()}
    rarest_first = sorted(counts, key=lambda word: (counts[word], word))
    index = CopyIndex(
        first=first,
        weights=weights,
        ranks={word: rank for rank, word in enumerate(rarest_first)},
        words={},
        sizes={},
        listed={},
    )

    for (key, label), position in first_of_label.items():
        words = _words(key, index=index)
        for word in words.known[: words.num_rarest]:
            index.listed.setdefault((label, word), []).append(position)
        if words.num_rarest:
            index.words[position] = frozenset(words.known)
            index.sizes[position] = words.size
    return index


def copies_of(key: str, *, label: str, index: CopyIndex) -> set[int]:
    """Return the positions of the copies of a text, which is given by its letters and digits.

    A text with the same letters and digits is a copy, whatever its label is. A near copy has the
    same label: a text with one other word and another label is another item.
    """
    copies = {index.first[key]} if key in index.first else set()
    words = _words(key, index=index)
    candidates = set[int]()
    if words.num_rarest:
        label = letters_and_digits(label)
        for word in words.known[: words.num_rarest]:
            candidates.update(index.listed.get((label, word), ()))
    for position in candidates - copies:
        common = index.words[position].intersection(words.known)
        shared = sum(index.weights[word] for word in common)
        if shared >= SIMILARITY * (words.size + index.sizes[position] - shared) - ROUNDING:
            copies.add(position)
    return copies


def _words(key: str, *, index: CopyIndex) -> _Words:
    """Return the words of a text.

    The words after the rarest ones weigh less than `SIMILARITY` of the text, so a near copy has one
    of the rarest.
    """
    words = set(key.split())
    known = [word for word in words if word in index.weights]
    rest = sum(index.weights[word] for word in known)
    size = rest + len(words) - len(known)
    least = SIMILARITY * size - ROUNDING
    if size < MIN_WEIGHT:
        return _Words(known, 0, size)

    known.sort(key=index.ranks.__getitem__)
    num_rarest = 0
    while num_rarest < len(known) and rest >= least:
        rest -= index.weights[known[num_rarest]]
        num_rarest += 1
    return _Words(known, num_rarest, size)


def documents(rows: Rows) -> tuple[str, ...] | None:
    """Return the number of each row's document: the rows of a document (`document_keys`) and their
    copies.

    Documents that share a copy are one document. With `split_by`, only copies of texts that are
    long enough for near copies count, because stock phrases occur in many documents. The result is
    None if each row is a document without `split_by`. Documents are numbered because values of
    `split_by` may identify a person.
    """
    first_of_key: dict[str, int] = {}
    pairs = []
    for row, key in enumerate(document_keys(rows)):
        pairs.append((row, first_of_key.setdefault(key, row)))
    index = copy_index(rows.texts, labels=rows.labels)
    for row, (text, label) in enumerate(zip(rows.texts, rows.labels, strict=True)):
        key = letters_and_digits(text)
        if rows.split_keys is None or _words(key, index=index).size >= MIN_WEIGHT:
            pairs.extend((row, copy) for copy in copies_of(key, label=label, index=index))

    one, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array(
        (np.ones(len(pairs), dtype=np.bool_), (one, other)), shape=(len(rows), len(rows))
    )
    num_documents, numbers = connected_components(graph, directed=False)
    if rows.split_keys is None and num_documents == len(rows):
        return None
    return tuple(map(str, numbers.tolist()))
