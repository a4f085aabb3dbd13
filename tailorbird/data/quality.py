"""Data quality checks: drop copies across splits, count problems, and reject data that cannot be evaluated."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from itertools import combinations

from tailorbird.data.near_duplicates import near_duplicates
from tailorbird.data.rows import DataError, Splits
from tailorbird.data.splits import normalise, subsample_of_classes

RARE_ROWS = 10
MAX_LISTED = 5


@dataclass(frozen=True)
class DataReport:
    """Results of the data quality checks. Counts are numbers of rows unless stated otherwise."""

    num_train: int
    num_validation: int
    num_test: int
    num_classes: int  # distinct labels in train; for chat tasks, distinct answers
    train_copies_of_test: int  # training rows dropped because their normalised text is in test
    train_copies_of_validation: int  # the same for validation; texts in both count for test only
    validation_copies_of_test: int
    near_duplicates_of_test: int
    """Test rows with a near-duplicate in train (cosine of character TF-IDF of 0.9 or more). They are kept."""
    near_duplicates_compared: int  # test rows compared with train: all, or a random sample of large data
    near_duplicates_of_validation: int
    near_duplicates_compared_in_validation: int
    conflicting_texts: int  # normalised texts with more than one label, over all splits before cleaning
    empty_texts: int  # rows with an empty or blank text, over all splits before cleaning
    rare_classes: tuple[str, ...]  # (classification only) classes with fewer than 10 training rows after cleaning
    leaks: tuple[str, ...]  # sentences of `leaks_of`
    near_duplicate_test_rows: tuple[str, ...] = ()
    """Ids of the rows in `near_duplicates_of_test`."""
    test_answers_in_train: int | None = None  # (chat only) test rows whose normalised answer is in train
    num_in_memory: int | None = None
    """(sharded data only) Training rows of the random sample in memory. Conflicts, near-duplicates and answers in train
    are counted, and baselines fitted, on this sample."""


def clean(splits: Splits) -> tuple[Splits, DataReport]:
    """Drop rows of train and validation whose normalised text is in a later split. Test is not changed.

    Near-duplicates are counted but kept: production traffic contains them too, so a test without them would not be
    representative. Raises DataError for an empty split, a single class, or a label in validation or test that is not
    in train.
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
        near_duplicates_of_test=near_test.num_duplicates,
        near_duplicates_compared=near_test.num_compared,
        near_duplicates_of_validation=near_validation.num_duplicates,
        near_duplicates_compared_in_validation=near_validation.num_compared,
        conflicting_texts=_conflicts(splits, texts),
        empty_texts=sum(not text for column in texts.values() for text in column),
        rare_classes=rare_classes(Counter(cleaned.train.class_labels)),
        leaks=leaks_between(cleaned),
        near_duplicate_test_rows=tuple(cleaned.test.row_ids[position] for position in near_test.positions),
        test_answers_in_train=_answers_in_train(cleaned),
    )


def _answers_in_train(splits: Splits) -> int | None:
    """Return the number of test rows whose answer is the answer to a training row; None for classes."""
    if splits.test.conversations is None:
        return None
    answers = set(map(normalise, splits.train.labels))
    return sum(normalise(answer) in answers for answer in splits.test.labels)


def leaks_between(splits: Splits) -> tuple[str, ...]:
    """Return the sentences of `leaks_of` for splits in memory."""
    return leaks_of(
        {name: set(rows.split_keys or ()) for name, rows in splits.items()},
        {name: set(map(normalise, rows.texts)) for name, rows in splits.items()},
    )


def leaks_of(keys: Mapping[str, Set[str]], texts: Mapping[str, Set[str]]) -> tuple[str, ...]:
    """Return sentences about the pairs of splits that share values of `split_by` or normalised texts."""
    sentences: list[str] = []
    for earlier, later in combinations(keys, 2):
        if shared := keys[earlier] & keys[later]:
            digests = (hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12] for key in shared)
            hashes = ", ".join(f"{digest}…" for digest in sorted(digests)[:MAX_LISTED])  # a key may identify a patient
            sentences.append(f"{len(shared):,} values of split_by are in both {earlier} and {later} (sha256 {hashes})")
        if copies := texts[earlier] & texts[later]:
            sentences.append(f"{len(copies):,} texts are in both {earlier} and {later}")
    return tuple(sentences)


def listed(names: Collection[str]) -> str:
    """Return the first names in the alphabet for a message, and the number of the others."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(repr, sorted(names)[:MAX_LISTED])) + more


def rare_classes(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the classes with fewer than `RARE_ROWS` training rows, sorted."""
    return tuple(sorted(name for name, count in counts.items() if count < RARE_ROWS))


def take_training_rows(splits: Splits, *, size: int | None, seed: int) -> Splits:
    """Return the splits with a random subset of `size` training rows that has every class; None keeps all rows.

    Call it after `clean`, so that dropped rows are not drawn. Raises DataError if `size` is less than the number of
    classes.
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
                f"the {name} split has no rows{when}; give more data, or set data.train, data.validation and data.test"
            )


def _require_classes(splits: Splits) -> None:
    """(classification only) Raise DataError for a single class, or a label that is not in train."""
    known = set(splits.train.class_labels)
    if len(known) == 1:
        [label] = known
        raise DataError(f"train has only one class, {label!r}, but a classifier needs at least two; check data.label")
    for name in ("validation", "test"):
        counts = Counter(label for label in getattr(splits, name).class_labels if label not in known)
        if counts:
            raise DataError(
                f"{name} has {sum(counts.values())} rows with labels that are not in train: {listed(counts)}; "
                f"add training rows with these labels, or remove the rows from {name}"
            )


def _conflicts(splits: Splits, texts: dict[str, list[str]]) -> int:
    labels: dict[str, set[str]] = {}
    for name, rows in splits.items():
        for text, label in zip(texts[name], rows.labels, strict=True):
            labels.setdefault(text, set()).add(label)
    return sum(len(labels_of_text) > 1 for labels_of_text in labels.values())
