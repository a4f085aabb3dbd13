"""Data quality checks: drop copies across splits, count problems, and reject data that cannot be
evaluated."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, combinations

from tailorbird.data.answers import require_readable_answers
from tailorbird.data.copies import CopyIndex, copies_of, copy_index, documents
from tailorbird.data.fingerprints import letters_and_digits
from tailorbird.data.rows import DataError, Rows, Splits, text_of, trained_turns
from tailorbird.data.splits import classes_first, normalise

RARE_ROWS = 10
MAX_LISTED = 5


@dataclass(frozen=True)
class DataReport:
    """Results of the data quality checks. Counts are numbers of rows unless stated otherwise."""

    num_train: int
    num_validation: int
    num_test: int
    num_classes: int  # distinct labels in train; for chat tasks, distinct answers
    train_copies_of_test: int
    """Training rows dropped because they are copies of test rows, near copies included."""
    train_copies_of_validation: int  # the same for validation; copies of both count for test only
    validation_copies_of_test: int
    near_copies: int  # rows among these copies that are near copies
    test_documents: int  # numbers of test rows that are independent of each other
    largest_test_document: int
    conflicting_texts: int
    """Normalised texts with more than one label, over all splits before cleaning."""
    empty_texts: int  # rows with an empty or blank text, over all splits before cleaning
    rare_classes: tuple[str, ...]
    """(classification only) Classes with fewer than 10 training rows after cleaning."""
    test_answers_in_train: int | None = None
    """(chat only) Test rows whose normalised answer is in train."""
    untrained_turns: int = 0
    """(chat only) Turns before the answer of a training row that are not trained on, because all
    turns before them are a copy of the prompt of a test or validation row. The model still reads
    them."""
    num_in_memory: int | None = None
    """(sharded data only) Training rows of the random sample in memory. Conflicts and answers in
    train are counted, and baselines fitted, on this sample."""


@dataclass(frozen=True)
class EvaluatedRows:
    """The test rows and, after them, the validation rows, which no model is trained on."""

    index: CopyIndex
    num_test: int

    def copied(self, text: str, *, label: str) -> tuple[str, ...]:
        """Return the split that has a copy of a text, with "near" if it has a near copy only; ()
        without a copy.

        A text that is in both splits counts as a copy of the test row.
        """
        key = letters_and_digits(text)
        copied = copies_of(key, label=label, index=self.index)
        if not copied:
            return ()
        split = "test" if min(copied) < self.num_test else "validation"
        equal = self.index.first.get(key)
        if equal is None or (split == "test" and equal >= self.num_test):
            return split, "near"
        return (split,)

    def copied_rows(self, rows: Rows) -> list[tuple[str, ...]]:
        """Return `copied` for the text of each row."""
        pairs = zip(rows.texts, rows.labels, strict=True)
        return [self.copied(text, label=label) for text, label in pairs]


def evaluated_rows(test: Rows, *, validation: Rows) -> EvaluatedRows:
    """Return the rows of test and validation, to find their copies."""
    index = copy_index((*test.texts, *validation.texts), labels=(*test.labels, *validation.labels))
    return EvaluatedRows(index, len(test))


def drop_copies(train: Rows, *, evaluated: EvaluatedRows) -> tuple[Rows, Counter[str]]:
    """Return training rows without copies of evaluation rows, and the numbers of copies.

    The keys of the counts are those of `EvaluatedRows.copied`, and "turns". In a conversation, a
    turn before the answer is also trained on: if the text up to it is a copy, it becomes context,
    as a turn with weight 0, because the same beginning ("Hello") can be in many conversations.
    """
    copied = evaluated.copied_rows(train)
    counts = Counter(chain.from_iterable(copied))
    rows = train.take([row for row, splits in enumerate(copied) if not splits])

    untrained_turns = []
    for turns, untrained in zip(rows.turns, rows.untrained, strict=True):
        copies = set[int]()
        for position, (role, answer) in enumerate(turns):
            if role != "assistant" or position in untrained:
                continue
            if evaluated.copied(text_of(turns[:position]), label=answer):
                copies.add(position)
        counts["turns"] += len(copies)
        untrained_turns.append(tuple(sorted(copies.union(untrained))))
    if counts["turns"]:
        rows = replace(rows, untrained_turns=tuple(untrained_turns))
    return rows, counts


def clean(splits: Splits) -> tuple[Splits, DataReport]:
    """Drop rows of train and validation that are copies of rows in a later split, and see
    `drop_copies` for chat.

    Test is not changed: copies within it are one document. Raises DataError for an empty split, a
    single class, a label in validation or test that is not in train, a value of `split_by` in two
    splits, or an answer in validation or test without a value for a metric of `evaluation.answers`.
    """
    _require_rows(splits, when="")
    evaluated = evaluated_rows(splits.test, validation=splits.validation)
    copied = evaluated.copied_rows(splits.validation)
    distinct_rows = [row for row, names in enumerate(copied) if "test" not in names]
    validation = splits.validation.take(distinct_rows)
    train, copies = drop_copies(splits.train, evaluated=evaluated)
    cleaned = Splits(train=train, validation=validation, test=splits.test)
    _require_rows(cleaned, when=" after copies of rows in later splits were dropped")
    _require_classes(cleaned)
    require_separate_keys({name: set(rows.split_keys or ()) for name, rows in cleaned.items()})
    require_readable_answers(cleaned)

    texts = [*splits.train.texts, *splits.validation.texts, *splits.test.texts]
    labels = [*splits.train.labels, *splits.validation.labels, *splits.test.labels]
    per_class = Counter(train.labels)
    sizes = Counter(documents(cleaned.test) or cleaned.test.row_ids)
    return cleaned, DataReport(
        num_train=len(train),
        num_validation=len(validation),
        num_test=len(cleaned.test),
        num_classes=len(per_class),
        train_copies_of_test=copies["test"],
        train_copies_of_validation=copies["validation"],
        validation_copies_of_test=len(splits.validation) - len(validation),
        near_copies=copies["near"] + copied.count(("test", "near")),
        test_documents=len(sizes),
        largest_test_document=max(sizes.values()),
        conflicting_texts=_num_conflicts(texts, labels),
        empty_texts=num_blank(texts),
        rare_classes=rare_classes(Counter(train.class_labels)),
        test_answers_in_train=_answers_in_train(trained_turns(train), test=cleaned.test),
        untrained_turns=copies["turns"],
    )


def _answers_in_train(trained: Rows, *, test: Rows) -> int | None:
    """Return the number of test rows whose answer is one of the trained turns; None for classes."""
    if test.class_labels:
        return None
    answers = set(map(normalise, trained.labels))
    return sum(normalise(answer) in answers for answer in test.labels)


def require_separate_keys(keys: Mapping[str, Set[str]]) -> None:
    """Raise DataError if two splits share values of `split_by`; `keys` are the values by split.

    The message has no value, because it may identify a person.
    """
    for earlier, later in combinations(keys, 2):
        num_shared = len(keys[earlier] & keys[later])
        if num_shared:
            raise DataError(
                f"{num_shared:,} values of data.split_by are in both {earlier} and {later}; move "
                "all rows with the same value into one split, or remove data.split_by if such "
                "rows are independent"
            )


def require_known_labels(descriptions: Collection[str], *, train: Rows) -> None:
    """Raise DataError if `data.label_descriptions` describes a label that no training row has."""
    if unknown := set(descriptions) - set(train.class_labels):
        raise DataError(
            f"data.label_descriptions describes {listed(unknown)}, but no training row has such a "
            "label; correct or remove these keys"
        )


def require_no_test_row(examples: Sequence[str], *, test: Rows) -> None:
    """Raise DataError if an example, which clients and model cards show, is the query of a test
    row."""
    queries = set(map(normalise, test.queries))
    if shown := [example for example in examples if normalise(example) in queries]:
        raise DataError(
            f"serving.examples has a text of the test rows: {shown[0]!r}; choose another example"
        )


def listed(names: Collection[str]) -> str:
    """Return the first names in the alphabet for a message, and the number of the others."""
    text = ", ".join(map(repr, sorted(names)[:MAX_LISTED]))
    if len(names) > MAX_LISTED:
        return f"{text} and {len(names) - MAX_LISTED} more"
    return text


def rare_classes(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the classes with fewer than `RARE_ROWS` training rows, sorted."""
    return tuple(sorted(name for name, count in counts.items() if count < RARE_ROWS))


def take_training_rows(train: Rows, *, size: int | None, seed: int) -> Rows:
    """Return a random subset of `size` training rows that has every class; None keeps all rows.

    Call it after `clean`, so that dropped rows are not drawn. Raises DataError if `size` is less
    than the number of classes.
    """
    if size is None or size >= len(train):
        return train
    labels = train.class_labels or ("",) * len(train)
    num_classes = len(set(labels))
    if size < num_classes:
        raise DataError(
            f"data.max_train_rows {size} is too small: {size} rows cannot contain all "
            f"{num_classes} classes; give at least {num_classes}"
        )
    return train.take(sorted(classes_first(labels, seed=seed)[:size]))


def _require_rows(splits: Splits, *, when: str) -> None:
    for name, rows in splits.items():
        if not len(rows):
            raise DataError(
                f"the {name} split has no rows{when}; give more data, or set data.train, "
                "data.validation and data.test"
            )


def _require_classes(splits: Splits) -> None:
    """(classification only) Raise DataError for a single class, or a label that is not in train."""
    known = set(splits.train.class_labels)
    if len(known) == 1:
        [label] = known
        raise DataError(
            f"train has only one class, {label!r}, but a classifier needs at least two; check "
            "data.label"
        )
    for name in ("validation", "test"):
        labels = getattr(splits, name).class_labels
        if unknown := [label for label in labels if label not in known]:
            raise DataError(
                f"{name} has {len(unknown)} rows with labels that are not in train: "
                f"{listed(set(unknown))}; add training rows with these labels, or remove the rows "
                f"from {name}"
            )


def num_blank(texts: Iterable[str]) -> int:
    """Return the number of texts that are empty or white space."""
    return sum(not text.strip() for text in texts)


def _num_conflicts(texts: Sequence[str], labels: Sequence[str]) -> int:
    """Return the number of normalised texts with more than one label."""
    labels_of_text = defaultdict[str, set[str]](set)
    for text, label in zip(texts, labels, strict=True):
        labels_of_text[normalise(text)].add(label)
    return sum(len(different) > 1 for different in labels_of_text.values())
