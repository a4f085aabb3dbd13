"""Bags of words: TF-IDF features of word and character n-grams with a linear head, without a neural
network."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer

from tailorbird.models.errors import ModelError, first_line
from tailorbird.storage.stored_model import StoredModel

FloatArray = NDArray[np.float32]

MAX_TERMS = 100_000
"""Maximum number of terms of each kind of n-grams. The most frequent n-grams of the training texts
are kept."""
MAX_WEIGHTS = 50_000_000
"""Maximum number of weights: terms of all kinds times classes. The weights take 200 MB in a version
and in a replica, and 1.4 GB while the linear SVMs are fitted (28 B per weight). Above 250 classes,
the vocabulary is smaller than `MAX_TERMS`."""
MIN_TERMS = 2_000
"""Lower bound of the vocabulary limit, because fewer terms are not a useful baseline. Above 12,500
classes, the number of weights exceeds `MAX_WEIGHTS` by 4,000 for each further class."""
MAX_VOCABULARY_ROWS = 200_000
"""Texts whose n-grams are counted to choose the terms, because the n-grams of a million texts take
gigabytes."""
TERMS_FILE = "bag_of_words.json"
WEIGHTS_FILE = "bag_of_words.safetensors"


class NgramOptions(BaseModel):
    """The options of scikit-learn's `TfidfVectorizer` for a kind of n-grams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    analyzer: Literal["word", "char", "char_wb"]
    ngram_range: tuple[PositiveInt, PositiveInt]
    token_pattern: str | None = None  # (words only)
    lowercase: bool = True
    sublinear_tf: bool = True


NGRAMS: Mapping[str, NgramOptions] = {
    "words": NgramOptions(analyzer="word", ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b"),
    "characters": NgramOptions(analyzer="char_wb", ngram_range=(2, 5)),
}
"""Options of the vectorizer by kind of n-grams. Each kind is a block of features. A version stores
its own options."""


class _StoredTerms(StoredModel):
    """The vocabulary of a bag of words and the options that turn a text into n-grams."""

    terms: dict[str, tuple[str, ...]]
    """N-grams by kind, in the order of the features."""
    options: dict[str, NgramOptions]
    """Options of the vectorizer by kind."""


@dataclass(frozen=True)
class BagOfWords:
    """TF-IDF vectorizers by kind of n-grams, and the weight [V, L] and bias [L] of a linear head on
    their features."""

    vectorizers: Mapping[str, TfidfVectorizer] = field(repr=False)
    weight: FloatArray = field(repr=False)
    bias: FloatArray = field(repr=False)

    def logits(self, texts: Sequence[str]) -> FloatArray:
        """Return logits [N, L]; those of a text without a known n-gram equal the bias."""
        if not texts:
            return np.zeros((0, len(self.bias)), dtype=np.float32)
        features = stack_blocks(
            vectorizer.transform(list(texts)) for vectorizer in self.vectorizers.values()
        )
        return np.asarray(features @ self.weight + self.bias, dtype=np.float32)

    def scaled(self, factor: float) -> "BagOfWords":
        """Return the bag of words whose logits are multiplied by `factor`."""
        weight = self.weight * np.float32(factor)
        return replace(self, weight=weight, bias=self.bias * np.float32(factor))


def vocabulary_limit(num_classes: int) -> int:
    """Return the maximum number of terms of each kind of n-grams for a linear head of `num_classes`
    classes."""
    return min(MAX_TERMS, max(MIN_TERMS, MAX_WEIGHTS // (num_classes * len(NGRAMS))))


def fit_vectorizers(
    texts: Sequence[str], *, num_classes: int
) -> tuple[dict[str, TfidfVectorizer], csr_matrix]:
    """Return the vectorizers by kind of n-grams and the features [N, V] of the texts.

    Each block of a row has length 1, or 0 if the text has no n-gram of this kind. A kind without
    n-grams in any text is omitted. The terms of many texts are those of `MAX_VOCABULARY_ROWS` of
    them, evenly spaced. Raises ValueError if no text contains an n-gram.
    """
    vectorizers = {}
    blocks = []
    step = -(-len(texts) // MAX_VOCABULARY_ROWS)
    for name, options in NGRAMS.items():
        vectorizer = _vectorizer(options, max_features=vocabulary_limit(num_classes))
        try:
            if step > 1:
                vectorizer.fit(texts[::step])
                vectorizer = _vectorizer(options, vocabulary=vectorizer.vocabulary_)
            blocks.append(vectorizer.fit_transform(list(texts)))
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            continue  # texts with only punctuation contain characters but no words
        vectorizers[name] = vectorizer
    if not blocks:
        raise ValueError("no training text contains a word or a character; check data.text")
    return vectorizers, stack_blocks(blocks)


def stack_blocks(blocks: Iterable[csr_matrix]) -> csr_matrix:
    """Return one matrix with the columns of all blocks of features."""
    return hstack(list(blocks), format="csr", dtype=np.float32)


def bag_files(bag: BagOfWords) -> dict[str, bytes]:
    """Return the content of the files of a bag of words by name; loading them executes no code."""
    terms = {}
    options = {}
    arrays = {"weight": bag.weight, "bias": bag.bias}
    for name, vectorizer in bag.vectorizers.items():
        terms[name] = tuple(vectorizer.get_feature_names_out().tolist())
        options[name] = _options_of(vectorizer)
        arrays[f"idf.{name}"] = np.asarray(vectorizer.idf_)
    stored = _StoredTerms(terms=terms, options=options).model_dump_json().encode()
    return {TERMS_FILE: stored, WEIGHTS_FILE: save(arrays)}


def load_bag(folder: Path) -> BagOfWords:
    """Load a bag of words; its logits equal those of the fitted one bit for bit, even if `NGRAMS`
    has changed.

    Raises ModelError if a file is missing or damaged, or if the files do not fit each other.
    """
    try:
        stored = _StoredTerms.model_validate_json((folder / TERMS_FILE).read_bytes())
        arrays = load((folder / WEIGHTS_FILE).read_bytes())
        vectorizers = {}
        for name, terms in stored.terms.items():
            vocabulary = {term: column for column, term in enumerate(terms)}
            vectorizers[name] = _vectorizer(stored.options[name], vocabulary=vocabulary)
            vectorizers[name].build_analyzer()  # raises an error for an invalid pattern
            vectorizers[name].idf_ = arrays[f"idf.{name}"]
        weight = arrays["weight"]
        bias = arrays["bias"]
    except (OSError, KeyError, ValueError, re.error, SafetensorError) as error:
        raise ModelError(
            f"the bag of words in {folder} cannot be loaded: {first_line(error)}; run the recipe "
            "again"
        ) from None
    if weight.shape != (sum(map(len, stored.terms.values())), len(bias)):
        raise ModelError(
            f"{folder}/{WEIGHTS_FILE} does not fit the vocabulary in {TERMS_FILE}; run the recipe "
            "again"
        )
    return BagOfWords(vectorizers, weight, bias)


def _vectorizer(options: NgramOptions, **limits: Any) -> TfidfVectorizer:
    return TfidfVectorizer(dtype=np.float32, **options.model_dump(), **limits)


def _options_of(vectorizer: TfidfVectorizer) -> NgramOptions:
    return NgramOptions(**{name: getattr(vectorizer, name) for name in NgramOptions.model_fields})
