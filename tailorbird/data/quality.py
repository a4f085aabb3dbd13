"""Data quality gates: drop copies across splits, count, and refuse data that cannot be evaluated."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from tailorbird.data.near_duplicates import near_duplicates
from tailorbird.data.rows import DataError, Splits
from tailorbird.data.splits import normalise, subsample_of_classes

__all__ = ["DataReport", "clean", "leaks_between", "normalise", "take_training_rows"]

RARE_ROWS = 10
NAMED = 5


@dataclass(frozen=True)
class DataReport:
    """What the gates found; counts are of rows unless they say otherwise."""

    num_train: int
    num_validation: int
    num_test: int
    num_classes: int
    """Of labels in train; of a chat task, of different answers."""
    train_copies_of_test: int
    """Training rows dropped because their normalised text stands in test."""
    train_copies_of_validation: int
    """Training rows dropped because their normalised text stands in validation (and not in test)."""
    validation_copies_of_test: int
    """Validation rows dropped because their normalised text stands in test."""
    near_duplicates_of_test: int
    """Test rows with a near-duplicate in train (character TF-IDF cosine of 0.9 or more); they stay where they are."""
    near_duplicates_looked_at: int
    """Test rows that were compared with train for that: all, or a random sample where the data are large."""
    near_duplicates_of_validation: int
    """Validation rows with a near-duplicate in train; they stay where they are."""
    near_duplicates_looked_at_in_validation: int
    """Validation rows that were compared with train for that."""
    conflicting_texts: int
    """Normalised texts, over all splits as read, that carry more than one label."""
    empty_texts: int
    """Rows, over all splits as read, whose text is empty or white space."""
    rare_classes: tuple[str, ...]
    """Classes with fewer than 10 training rows after cleaning; of a chat task, none."""
    leaks: tuple[str, ...]
    """One sentence a pair of splits that share values of `split_by`, or texts."""
    num_in_memory: int | None = None
    """Of training rows that are streamed, those held in memory, a random part: conflicts and near-duplicates are
    counted among them, and the pretrained rungs are fitted on them."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def clean(splits: Splits) -> tuple[Splits, DataReport]:
    """Drops from train and validation what also stands in a later split, by normalised text; test is left untouched.

    Near-duplicates are counted only: real data repeat themselves, and dropping what is alike would make the test easier
    or harder than the work that the model is for.

    Raises DataError for an empty split, a single class, or a label in validation or test that train never shows.
    """
    _require_rows(splits, when="")
    texts = {name: [normalise(text) for text in rows.texts] for name, rows in splits.items()}
    in_test, in_validation = set(texts["test"]), set(texts["validation"])
    validation = [row for row, text in enumerate(texts["validation"]) if text not in in_test]
    train = [row for row, text in enumerate(texts["train"]) if text not in in_test and text not in in_validation]
    cleaned = Splits(train=splits.train.take(train), validation=splits.validation.take(validation), test=splits.test)
    _require_rows(cleaned, when=" after exact copies of rows in later splits were dropped")
    _require_classes(cleaned)
    copies_of_test = sum(text in in_test for text in texts["train"])
    per_class = Counter(cleaned.train.labels)
    near_test = near_duplicates(cleaned.test.texts, among=cleaned.train.texts)
    near_validation = near_duplicates(cleaned.validation.texts, among=cleaned.train.texts)
    return cleaned, DataReport(
        num_train=len(cleaned.train),
        num_validation=len(cleaned.validation),
        num_test=len(cleaned.test),
        num_classes=len(per_class),
        train_copies_of_test=copies_of_test,
        train_copies_of_validation=len(splits.train) - len(train) - copies_of_test,
        validation_copies_of_test=len(splits.validation) - len(validation),
        near_duplicates_of_test=near_test.num_found,
        near_duplicates_looked_at=near_test.num_looked_at,
        near_duplicates_of_validation=near_validation.num_found,
        near_duplicates_looked_at_in_validation=near_validation.num_looked_at,
        conflicting_texts=_conflicts(splits, texts),
        empty_texts=sum(not text for column in texts.values() for text in column),
        rare_classes=rare_classes(Counter(cleaned.train.class_labels)),
        leaks=leaks_between(cleaned),
    )


def leaks_between(splits: Splits) -> tuple[str, ...]:
    """As `leaks_of`, of splits that are held in memory."""
    return leaks_of(
        {name: set(rows.split_keys or ()) for name, rows in splits.items()},
        {name: set(map(normalise, rows.texts)) for name, rows in splits.items()},
    )


def leaks_of(keys: Mapping[str, Set[str]], texts: Mapping[str, Set[str]]) -> tuple[str, ...]:
    """One sentence for each pair of splits with a value of `split_by`, or a normalised text, in common.

    It says how many, and of `split_by` values the first hash digits of some: a value may be a patient.
    """
    sentences: list[str] = []
    for one, other in combinations(keys, 2):
        shared = keys[one] & keys[other]
        if shared:
            some = ", ".join(sorted(_hashed(key) for key in shared)[:NAMED])
            sentences.append(f"{len(shared):,} split_by values stand in {one} and in {other} (sha256 {some})")
        copies = texts[one] & texts[other]
        if copies:
            sentences.append(f"{len(copies):,} texts stand in {one} and in {other}")
    return tuple(sentences)


def rare_classes(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Classes with fewer than `RARE_ROWS` training rows, sorted."""
    return tuple(sorted(name for name, count in counts.items() if count < RARE_ROWS))


def take_training_rows(splits: Splits, *, size: int | None, seed: int) -> Splits:
    """The same splits with a random part of the training rows, of `size`, in which every class keeps a row.

    For after `clean`, so that the part is drawn from rows that may be trained on. None keeps all. Conversations have no
    classes. Raises DataError when `size` is under the number of classes.
    """
    if size is None or size >= len(splits.train):
        return splits
    classes = splits.train.class_labels or ("",) * len(splits.train)
    try:
        kept = subsample_of_classes(classes, size=size, seed=seed)
    except ValueError as error:
        raise DataError(f"data.max_train_rows {size} is too small: {error}") from None
    return Splits(train=splits.train.take(kept), validation=splits.validation, test=splits.test)


def _require_rows(splits: Splits, *, when: str) -> None:
    for name, rows in splits.items():
        if not len(rows):
            raise DataError(
                f"the {name} split has no rows{when}; give more data, or name train, validation and test yourself"
            )


def _require_classes(splits: Splits) -> None:
    """(classification only) Raise DataError for a single class, or a label that train lacks."""
    known = set(splits.train.class_labels)
    if len(known) == 1:
        raise DataError(
            f"train has one class only, {next(iter(known))!r}; a classifier needs at least two: check data.label"
        )
    for name in ("validation", "test"):
        counts = Counter(label for label in getattr(splits, name).class_labels if label not in known)
        if counts:
            raise DataError(
                f"{name} has {sum(counts.values())} rows with labels that train never shows: {_some(sorted(counts))}; "
                f"add training rows of them, or take them out of {name}"
            )


def _conflicts(splits: Splits, texts: dict[str, list[str]]) -> int:
    labels: dict[str, set[str]] = {}
    for name, rows in splits.items():
        for text, label in zip(texts[name], rows.labels, strict=True):
            labels.setdefault(text, set()).add(label)
    return sum(len(found) > 1 for found in labels.values())


def _some(values: Sequence[str]) -> str:
    more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
    return ", ".join(repr(value) for value in values[:NAMED]) + more


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12] + "…"
