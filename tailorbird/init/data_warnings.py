"""What `tailorbird init` warns about: unequal classes, unequal splits."""

from collections import Counter

from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.statistics.split_differences import ALPHA, SplitSample, split_differences

LARGEST_SHARE = 0.6  # share of the largest class above which accuracy says little
# factor between two splits below which a difference gives no warning, though it may be significant
LEAST_FACTOR = 1.5
IMBALANCE_RATIO = 9.0
"""Rows of the largest class divided by those of the smallest above which classes are highly
imbalanced, as in the KEEL data-set repository."""


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
