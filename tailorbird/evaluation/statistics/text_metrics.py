"""Metrics of generated text against a reference answer, in [0, 1]: exact match, token F1,
ROUGE-L."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from tailorbird.config.answers import WORD


def words(text: str) -> list[str]:
    """Return the words of a text, normalised for comparison: NFKC, case folded, without other
    punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def exact_match(answer: str, reference: str) -> float:
    """Return 1 if answer and reference have the same words in the same order, else 0."""
    return float(words(answer) == words(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the words, counted with repetitions.

    Rajpurkar et al., SQuAD (2016). Unlike SQuAD, articles are kept, because the metric is for any
    language.
    """
    answer_words = words(answer)
    reference_words = words(reference)
    num_common = (Counter(answer_words) & Counter(reference_words)).total()
    return _f1(num_common, len(answer_words), len(reference_words))


def rouge_l(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the longest common word subsequence. Lin,
    ROUGE (2004)."""
    answer_words = words(answer)
    reference_words = words(reference)
    num_common = _common_subsequence(answer_words, reference_words)
    return _f1(num_common, len(answer_words), len(reference_words))


TEXT_METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}


def words_sha256(text: str) -> str:
    """Return a hash of the words of a text; two texts have the same hash if and only if
    `exact_match` is 1."""
    return hashlib.sha256("\n".join(words(text)).encode("utf-8", "surrogatepass")).hexdigest()


def _f1(common: int, num_first: int, num_second: int) -> float:
    if num_first == num_second == 0:
        return 1.0
    return 2 * common / (num_first + num_second)


def _common_subsequence(answer_words: Sequence[str], reference_words: Sequence[str]) -> int:
    """Return the length of the longest common subsequence (Hyyrö, Bit-parallel LCS-length,
    2004)."""
    positions: dict[str, int] = {}
    for position, word in enumerate(answer_words):
        positions[word] = positions.get(word, 0) | 1 << position
    every = (1 << len(answer_words)) - 1
    left = every
    for word in reference_words:
        matches = left & positions.get(word, 0)
        left = (left + matches | left - matches) & every
    return len(answer_words) - left.bit_count()
