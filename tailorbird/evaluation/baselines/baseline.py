"""Baselines with their validation scores, and the selection of the incumbent."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """A baseline and its validation score in the recipe's metric."""

    kind: str
    uri: str | None  # URI of its artifact; None if it has none
    validation: float
    servable: bool
    note: str  # description for reports


def select_incumbent(baselines: Sequence[Baseline]) -> Baseline:
    """Return the servable baseline with the best validation score: the model that the candidate must beat.

    The first of equal scores wins, so put the champion first. At least one baseline must be servable.
    """
    return max((baseline for baseline in baselines if baseline.servable), key=lambda baseline: baseline.validation)
