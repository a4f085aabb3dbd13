"""Baselines with their validation scores, and the selection of the incumbent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tailorbird.registry.versions import ENDPOINT_KINDS

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


class Scored(Protocol):
    """A baseline with its validation score."""

    @property
    def kind(self) -> str: ...
    @property
    def validation(self) -> float: ...


S = TypeVar("S", bound=Scored)


def select_incumbent(baselines: Sequence[Baseline]) -> Baseline:
    """Return the model that the candidate must beat: the champion, or else the best servable baseline on validation.

    The champion is not compared by its validation score: by chance, one of several baselines often scores higher on
    validation than a champion that is better. The first of equal scores wins. At least one baseline must be servable.
    """
    servable = [baseline for baseline in baselines if baseline.servable]
    champion = next((baseline for baseline in servable if baseline.kind == CHAMPION), None)
    return champion or max(servable, key=lambda baseline: baseline.validation)


def further_contenders(baselines: Sequence[Baseline]) -> tuple[Baseline, ...]:
    """Return the further contenders other than the incumbent, at most `NUM_FURTHER`, best on validation first.

    They are tested against the incumbent together with the candidate.
    """
    incumbent = select_incumbent(baselines)
    others = [baseline for baseline in baselines if baseline.servable and baseline is not incumbent]
    return select_further(others, incumbent=incumbent.kind)


def select_further(others: Sequence[S], *, incumbent: str) -> tuple[S, ...]:
    """Return the best of the other servable baselines on validation, best first; `incumbent` is the incumbent's kind.

    If an external endpoint is a baseline, its best kind is tested in any case, as a contender or as the incumbent: a
    recipe names an endpoint to compare it.
    """
    ranked = sorted(others, key=lambda baseline: -baseline.validation)
    chosen = ranked[:NUM_FURTHER]
    endpoint = next((baseline for baseline in ranked if baseline.kind in ENDPOINT_KINDS), None)
    if endpoint is not None and not any(kind in ENDPOINT_KINDS for kind in (incumbent, *(one.kind for one in chosen))):
        chosen[-1] = endpoint
    return tuple(chosen)
