"""Assign rows to splits and draw subsets, deterministically for a seed."""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def normalise(text: str) -> str:
    """Return a text in a form in which copies are equal: NFKC, with folded case and collapsed white
    space."""
    return " ".join(
        unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split()
    )


def split_by_key(
    keys: Sequence[str], *, fractions: tuple[float, float, float], seed: int
) -> np.ndarray:
    """Return the split of each row, int64 [N]: 0 (train), 1 (validation) or 2 (test).

    The split depends only on the key, the fractions and the seed, not on other rows.
    """
    bounds = np.cumsum(fractions[:2])
    drawn = {key: _uniform(key, seed=seed) for key in set(keys)}
    quantiles = np.array([drawn[key] for key in keys], dtype=np.float64)
    return np.searchsorted(bounds, quantiles, side="right").astype(np.int64)


def subsample(n: int, *, size: int, seed: int) -> np.ndarray:
    """Return the sorted int64 indices of `size` of `n` rows, drawn without replacement; all rows if
    `size` >= `n`."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:size]).astype(np.int64)


def classes_first(labels: Sequence[str], *, seed: int) -> NDArray[np.int64]:
    """Return the rows in a random order, int64 [N], that begins with one row of each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    first_of_class: dict[str, int] = {}
    for row in order:
        first_of_class.setdefault(labels[row], int(row))
    required = list(first_of_class.values())
    rest = order[~np.isin(order, required)]
    return np.concatenate([required, rest]).astype(np.int64)


def _uniform(key: str, *, seed: int) -> float:
    encoded = f"{seed}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(encoded).digest()[:7], "big") / 2**56


def stratified_split(
    keys: Sequence[str], *, labels: Sequence[str], folds: tuple[int, int, int], seed: int
) -> NDArray[np.int64]:
    """Return the split (0 train, 1 validation, 2 test) of each row, int64 [N], grouped by key and
    stratified by label.

    `folds` is the number of equal folds for each split. Unlike in `split_by_key`, the split of a
    row depends on the other rows, so use it only for data sets that are written once.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    owner = np.repeat([2, 1, 0], folds[::-1])
    splitter = StratifiedGroupKFold(sum(folds), shuffle=True, random_state=seed)
    result = np.empty(len(keys), dtype=np.int64)
    for fold, (_, rows) in enumerate(splitter.split(np.zeros(len(keys)), list(labels), list(keys))):
        result[rows] = owner[fold]
    return result
