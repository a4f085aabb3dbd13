"""Find near-duplicates of training texts by the cosine of character TF-IDF vectors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from tailorbird.data.splits import normalise, subsample

THRESHOLD = 0.9  # cosine from which two texts are near-duplicates
NUM_COLUMNS = 1 << 20
CHUNK_CHARACTERS = 1 << 20
CHUNK_PAIRS = 1 << 22  # cosines in memory at once; each takes at most 8 bytes with its column
IDF_CHARACTERS = 5_000_000
MAX_WORK = 1e10
"""Maximum product of the number of characters in `texts` and the number of texts in `among`. It takes about ten seconds
on one core (1.1 ns per unit, measured on texts of 60 and 1,200 characters). An example is 3,300 texts of 60 characters
among 50,000 texts."""
MIN_COMPARED = 500


@dataclass(frozen=True)
class NearDuplicates:
    """The texts that have a near-duplicate, and the number of texts compared."""

    positions: tuple[int, ...]  # of the texts with a near-duplicate, ascending
    num_compared: int

    @property
    def num_duplicates(self) -> int:
        return len(self.positions)


def near_duplicates(texts: Sequence[str], *, among: Sequence[str], threshold: float = THRESHOLD) -> NearDuplicates:
    """Return the texts whose nearest text in `among` has a cosine of `threshold` or more.

    Texts are normalised, so case and white space do not matter, and represented by the TF-IDF weights of the character
    3- to 5-grams within words. N-grams are hashed into 2^20 columns: a vocabulary fitted on `among` would ignore the
    n-grams that occur only in a text and overestimate its similarity. Document frequencies are computed on the compared
    texts and a random sample of `among` with IDF_CHARACTERS characters. If the work exceeds MAX_WORK, a random sample
    of at least MIN_COMPARED texts (seed 0) is compared with all of `among`. Memory does not grow with `among`.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    work = float(sum(map(len, texts))) * len(among)
    positions = _share(texts, MAX_WORK / max(1.0, work), at_least=MIN_COMPARED)
    compared = [normalise(texts[row]) for row in positions]
    if not compared or not among:
        return NearDuplicates((), len(compared))
    grams = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), lowercase=False, norm=None, alternate_sign=False,
        n_features=NUM_COLUMNS, dtype=np.float32,
    )  # fmt: skip
    sample = [normalise(among[row]) for row in _share(among, IDF_CHARACTERS / max(1, sum(map(len, among))))]
    counted = grams.transform(compared)
    weigh = TfidfTransformer(norm="l2").fit(sparse.vstack([counted, grams.transform(sample)]))
    queries = weigh.transform(counted)
    nearest = np.zeros(len(compared), dtype=np.float32)
    for chunk in _chunks(among):
        weights = weigh.transform(grams.transform(chunk)).T.tocsr()
        step = max(1, CHUNK_PAIRS // len(chunk))
        for start in range(0, len(compared), step):
            rows = slice(start, start + step)
            nearest[rows] = np.maximum(nearest[rows], (queries[rows] @ weights).max(axis=1).toarray().ravel())
    return NearDuplicates(tuple(positions[nearest >= threshold].tolist()), len(compared))


def _share(texts: Sequence[str], share: float, *, at_least: int = 1) -> np.ndarray:
    """Return the sorted indices of a random share of the texts, at least `at_least` of them; all if `share` >= 1."""
    return subsample(len(texts), size=max(at_least, int(len(texts) * min(1.0, share))), seed=0)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the normalised texts in chunks of about CHUNK_CHARACTERS characters."""
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
