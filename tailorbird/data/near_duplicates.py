"""Inside the data gates: which rows have a near-duplicate among the training texts, by character TF-IDF cosine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from tailorbird.data.splits import normalise, subsample

THRESHOLD = 0.9
"""Cosine from which two texts count as nearly the same."""
NUM_COLUMNS = 1 << 20
CHUNK_CHARACTERS = 1 << 20
CHUNK_PAIRS = 1 << 22
"""Cosines in hand at once: at most 8 bytes each with their column."""
IDF_CHARACTERS = 5_000_000
MAX_WORK = 1e10
"""Characters looked at x training texts: ten seconds of one core (1.1 ns each, measured on texts of 60 and 1,200
characters), so 3,300 texts of 60 characters among 50,000."""
LEAST_LOOKED_AT = 500


@dataclass(frozen=True)
class NearDuplicates:
    """How many rows have a near-duplicate, of how many that were looked at."""

    num_found: int
    num_looked_at: int


def near_duplicates(texts: Sequence[str], *, among: Sequence[str], threshold: float = THRESHOLD) -> NearDuplicates:
    """Counts the texts whose nearest text in `among` has a cosine of `threshold` or more.

    The cosine is that of the TF-IDF weights of character 3- to 5-grams within words, of normalised texts, so case and
    white space do not count. N-grams are hashed into 2^20 columns: a vocabulary learnt from `among` alone would not
    see what is new in a text, and call it more alike than it is. Document frequencies come from the texts looked at
    and from a random five million characters of `among`. Where the characters of `texts` times the number of `among`
    exceed 1e10 (3,300 texts of 60 characters among 50,000), the texts looked at are a random sample that fits, of at
    least 500 (seed 0: as many texts, the same sample); all of `among` is compared with them. Memory is bounded by the
    texts looked at and the chunks, not by `among`.
    """
    looked = [normalise(texts[row]) for row in _looked_at(texts, among=among)]
    if not looked or not among:
        return NearDuplicates(num_found=0, num_looked_at=len(looked))
    grams = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), lowercase=False, norm=None, alternate_sign=False,
        n_features=NUM_COLUMNS, dtype=np.float32,
    )  # fmt: skip
    known = [normalise(among[row]) for row in _share(among, IDF_CHARACTERS / max(1, sum(map(len, among))))]
    counted = grams.transform(looked)
    weigh = TfidfTransformer(norm="l2").fit(sparse.vstack([counted, grams.transform(known)]))
    queries = weigh.transform(counted)
    nearest = np.zeros(len(looked), dtype=np.float32)
    for chunk in _chunks(among):
        answers = weigh.transform(grams.transform(chunk)).T.tocsr()
        step = max(1, CHUNK_PAIRS // len(chunk))
        for start in range(0, len(looked), step):
            part = slice(start, start + step)
            best = (queries[part] @ answers).max(axis=1).toarray().ravel()
            nearest[part] = np.maximum(nearest[part], best)
    return NearDuplicates(num_found=int((nearest >= threshold).sum()), num_looked_at=len(looked))


def _looked_at(texts: Sequence[str], *, among: Sequence[str]) -> np.ndarray:
    work = float(sum(map(len, texts))) * len(among)
    return _share(texts, MAX_WORK / max(1.0, work), least=LEAST_LOOKED_AT)


def _share(texts: Sequence[str], share: float, *, least: int = 1) -> np.ndarray:
    """Sorted positions of a random share of the texts, of at least `least`; of all from 1."""
    return subsample(len(texts), size=max(least, int(len(texts) * min(1.0, share))), seed=0)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """The normalised texts in runs of about a million characters."""
    chunk: list[str] = []
    num_characters = 0
    for text in texts:
        chunk.append(normalise(text))
        num_characters += len(text) + 1
        if num_characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk
