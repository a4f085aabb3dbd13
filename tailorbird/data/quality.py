"""Data quality checks: drop copies across splits, count problems, and reject data that cannot be evaluated."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations

from tailorbird.data.near_duplicates import near_duplicates
from tailorbird.data.rows import DataError, Rows, Splits, text_of, trained_turns
from tailorbird.data.splits import normalise, subsample_of_classes

EVALUATION_SPLITS = ("test", "validation")
"""Splits whose texts are not trained on. A text that is in both counts as a copy of the first."""
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
    train_turn_copies_of_test: int = 0
    """(chat only) Turns before the answer of a training row that are not trained on, because all turns before them are
    the prompt of a test row. The model still reads them."""
    train_turn_copies_of_validation: int = 0
    num_in_memory: int | None = None
    """(sharded data only) Training rows of the random sample in memory. Conflicts, near-duplicates and answers in train
    are counted, and baselines fitted, on this sample."""


@dataclass(frozen=True)
class Copies:
    """Numbers of copies of rows in test and validation, by split. A copy of both counts for test only."""

    rows: Counter[str] = field(default_factory=Counter)  # training rows that were dropped
    turns: Counter[str] = field(default_factory=Counter)  # (chat only) earlier turns that are no longer trained on


def drop_copies(train: Rows, *, evaluated: Mapping[str, Set[str]]) -> tuple[Rows, Copies]:
    """Return training rows without training on copies of evaluation rows, and the numbers of copies.

    `evaluated` has the normalised texts of test and validation by split. A row whose text is among them is dropped. In
    a conversation, a turn before the answer is also trained on: if the text up to it is among them, it becomes context,
    as a turn with weight 0, because the same beginning ("Hello") can be in many conversations.
    """
    copies = Copies()

    def is_copy(text: str, counts: Counter[str]) -> bool:
        normalised = normalise(text)
        split = next((split for split in EVALUATION_SPLITS if normalised in evaluated[split]), None)
        counts.update([split] if split else [])
        return split is not None

    rows = train.take([row for row, text in enumerate(train.texts) if not is_copy(text, copies.rows)])
    if rows.conversations is None:
        return rows, copies
    untrained = rows.untrained_turns or ((),) * len(rows)
    with_copies = tuple(
        tuple(
            at
            for at, (role, _) in enumerate(turns)
            if at in known or (role == "assistant" and is_copy(text_of(turns[:at]), copies.turns))
        )
        for turns, known in zip(rows.conversations, untrained, strict=True)
    )
    return (replace(rows, untrained_turns=with_copies) if copies.turns else rows), copies


def clean(splits: Splits) -> tuple[Splits, DataReport]:
    """Drop rows of train and validation whose normalised text is in a later split, and see `drop_copies` for chat.

    Test is not changed. Near-duplicates are counted but kept: production traffic contains them too, so a test without
    them would not be representative. Raises DataError for an empty split, a single class, or a label in validation or
    test that is not in train.
    """
    _require_rows(splits, when="")
    texts = {name: [normalise(text) for text in rows.texts] for name, rows in splits.items()}
    evaluated = {split: set(texts[split]) for split in EVALUATION_SPLITS}
    validation = [row for row, text in enumerate(texts["validation"]) if text not in evaluated["test"]]
    train, copies = drop_copies(splits.train, evaluated=evaluated)
    cleaned = Splits(train=train, validation=splits.validation.take(validation), test=splits.test)
    _require_rows(cleaned, when=" after exact copies of rows in later splits were dropped")
    _require_classes(cleaned)
    trained = trained_turns(train)
    per_class = Counter(cleaned.train.labels)
    near_test = near_duplicates(cleaned.test.texts, among=trained.texts)
    near_validation = near_duplicates(cleaned.validation.texts, among=trained.texts)
    return cleaned, DataReport(
        num_train=len(cleaned.train),
        num_validation=len(cleaned.validation),
        num_test=len(cleaned.test),
        num_classes=len(per_class),
        train_copies_of_test=copies.rows["test"],
        train_copies_of_validation=copies.rows["validation"],
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
        test_answers_in_train=_answers_in_train(trained, test=cleaned.test),
        train_turn_copies_of_test=copies.turns["test"],
        train_turn_copies_of_validation=copies.turns["validation"],
    )


def _answers_in_train(trained: Rows, *, test: Rows) -> int | None:
    """Return the number of test rows whose answer is one of the trained turns; None for classes."""
    if test.conversations is None:
        return None
    answers = set(map(normalise, trained.labels))
    return sum(normalise(answer) in answers for answer in test.labels)


def leaks_between(splits: Splits) -> tuple[str, ...]:
    """Return the sentences of `leaks_of` for splits in memory."""
    return leaks_of(
        {name: set(rows.split_keys or ()) for name, rows in splits.items()},
        texts_by_split(splits),
    )


def texts_by_split(splits: Splits) -> dict[str, set[str]]:
    """Return the normalised texts of each split, in train only those that are also in another split.

    In train, these are the texts up to each turn that is trained on.
    """
    texts = {split: set(map(normalise, getattr(splits, split).texts)) for split in EVALUATION_SPLITS}
    evaluated = set().union(*texts.values())
    trained = {text for text in map(normalise, trained_turns(splits.train).texts) if text in evaluated}
    return {"train": trained, "validation": texts["validation"], "test": texts["test"]}


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


def require_no_test_row(examples: Sequence[str], *, test: Rows) -> None:
    """Raise DataError if an example, which clients and model cards show, is the query of a test row."""
    queries = set(map(normalise, test.queries))
    if shown := [example for example in examples if normalise(example) in queries]:
        raise DataError(f"serving.examples has a text of the test rows: {shown[0]!r}; choose another example")


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
