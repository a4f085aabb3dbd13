"""Contenders that need no fine-tuning, with their scores on validation, and which of them is the incumbent."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """A baseline and its score on the validation rows, by the recipe's metric."""

    kind: str
    uri: str | None  # URI of its artifact; None if it has none
    validation: float
    servable: bool
    note: str  # how it was made, for people


def select_incumbent(baselines: Sequence[Baseline]) -> Baseline:
    """Return the servable baseline that scores best on validation: the model that a candidate has to replace.

    The first of several with the same score wins, so put the champion first. At least one baseline is servable.
    """
    return max((baseline for baseline in baselines if baseline.servable), key=lambda baseline: baseline.validation)
