"""Baselines with their validation scores, and the selection of the incumbent."""

from collections.abc import Sequence
from dataclasses import dataclass

CHAMPION = "champion"  # kind of the current champion among the baselines


@dataclass(frozen=True)
class Baseline:
    """A baseline and its validation score in the recipe's metric."""

    kind: str
    uri: str | None  # URI of its artifact; None if it has none
    validation: float
    servable: bool
    note: str  # description for reports


NUM_FURTHER = 2  # number of further contenders


def select_incumbent(baselines: Sequence[Baseline]) -> Baseline:
    """Return the model that the candidate must beat: the champion, or else the best servable baseline on validation.

    The champion is not compared by its validation score: by chance, one of several baselines often scores higher on
    validation than a champion that is better. The first of equal scores wins. At least one baseline must be servable.
    """
    servable = [baseline for baseline in baselines if baseline.servable]
    champion = next((baseline for baseline in servable if baseline.kind == CHAMPION), None)
    return champion or max(servable, key=lambda baseline: baseline.validation)


def further_contenders(baselines: Sequence[Baseline]) -> tuple[Baseline, ...]:
    """Return the best servable baselines on validation other than the incumbent, at most `NUM_FURTHER`, best first.

    They are tested against the incumbent together with the candidate.
    """
    incumbent = select_incumbent(baselines)
    others = [baseline for baseline in baselines if baseline.servable and baseline is not incumbent]
    return tuple(sorted(others, key=lambda baseline: -baseline.validation)[:NUM_FURTHER])
