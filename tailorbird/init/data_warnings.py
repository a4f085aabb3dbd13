"""What `tailorbird init` warns about: languages that the base model may not know, unequal classes,
unequal splits."""

from collections import Counter

from tailorbird.data.profiling.languages import Languages
from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.statistics.split_differences import ALPHA, SplitSample, split_differences

FOREIGN_SHARE = 0.05  # share of texts that are not English above which a warning is given
MIN_RECOGNIZED = 20  # texts with a recognized language without which no warning is given
LARGEST_SHARE = 0.6  # share of the largest class above which accuracy says little
# factor between two splits below which a difference gives no warning, though it may be significant
LEAST_FACTOR = 1.5
IMBALANCE_RATIO = 9.0
"""Rows of the largest class divided by those of the smallest above which classes are highly
imbalanced, as in the KEEL data-set repository."""


def language_warning(
    languages: Languages, *, base_model: str, multilingual: str | None
) -> str | None:
    """Return a warning if texts are not English; None otherwise.

    `multilingual` is a base model for them if `base_model` is known to be trained on English only,
    else None.
    """
    if not has_other_languages(languages):
        return None
    text = (
        f"about {languages.foreign_share:.0%} of the texts are not English ({languages.sentence()})"
    )
    if multilingual is None:
        return f"{text}; check that {base_model} knows these languages"
    return (
        f"{text}, but {base_model} was trained on English only; try a multilingual model, such as "
        f"{multilingual}"
    )


def has_other_languages(languages: Languages) -> bool:
    """Return True if enough texts are recognized, and not only a few are not English."""
    return languages.num_recognized >= MIN_RECOGNIZED and languages.foreign_share > FOREIGN_SHARE


def uneven_classes(counts: Counter[str], *, least: int) -> str | None:
    """Return the reason for macro-F1 if classes differ much in size; None otherwise.

    Classes with fewer than `least` rows are not compared, because their scores say little in any
    metric.
    """
    largest, most = counts.most_common(1)[0]
    total = sum(counts.values())
    if most / total > LARGEST_SHARE:
        return (
            f"the largest class has {most / total:.0%} of the rows, so accuracy would hide the "
            "other classes"
        )
    smallest, fewest = min(counts.items(), key=lambda item: (item[1] < least, item[1]))
    if fewest >= least and most / fewest > IMBALANCE_RATIO:
        return (
            f"{largest!r} has {most / fewest:.0f} times the rows of {smallest!r}, so accuracy "
            "hides small classes"
        )
    return None


def split_warnings(splits: Splits) -> tuple[str, ...]:
    """Return a warning for each split that differs from the test rows in class shares or text
    lengths."""
    test = _sample(splits.test)
    warnings = []
    for name, rows in (("validation", splits.validation), ("train", splits.train)):
        differences = split_differences(
            _sample(rows), test=test, names=(name, "test"), least=LEAST_FACTOR
        )
        if differences:
            warnings.append(
                f"{name} and test differ by more than chance (corrected p < {ALPHA:g}) and by a "
                f"factor of at least {LEAST_FACTOR:g}: {'; '.join(differences)}. What is learned "
                f"or chosen on {name} then holds less on test; draw the splits at random from the "
                "same rows, unless the difference is intended"
            )
    return tuple(warnings)


def _sample(rows: Rows) -> SplitSample:
    return SplitSample(rows.class_labels, rows.texts, rows.split_keys)
