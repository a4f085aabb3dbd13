"""Baselines with their validation scores, and the selection of the incumbent.

Read next `classification.py` or `chat.py`, which fit the baselines of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tailorbird.registry.kinds import KINDS, spec_of

CHAMPION = "champion"  # kind of the current champion among the baselines
MAJORITY = "majority"  # kind of the baseline that always answers with the most frequent class


@dataclass(frozen=True)
class Baseline:
    """A baseline and its validation score in the recipe's metric."""

    kind: str  # `Kind`, `CHAMPION`, `MAJORITY`, or the name of a contender of the recipe
    uri: str | None  # URI of its artifact; None if it has none
    validation: float
    servable: bool
    note: str  # description for reports
    base_models: Mapping[str, float] = field(default_factory=dict)
    """Validation score with each base model by its name, of which the best is used; empty if the
    recipe has one base model."""


EMBEDDING_S = 300.0
"""Seconds after which no further training rows are embedded: an embedding takes a thousand times as
long as a bag of words. The heads on embeddings learn from the rows that were embedded by then."""
NUM_REPLACING = 3  # baselines that may replace the incumbent


@dataclass(frozen=True)
class OtherBaselines:
    """The baselines other than the incumbent that predict the test rows."""

    tested: tuple[Baseline, ...]  # best on validation first
    replacing: tuple[str, ...]  # kinds of those that may replace the incumbent


def best_of_bases(by_base: Mapping[str, Sequence[Baseline]]) -> tuple[Baseline, ...]:
    """Return each baseline with the base model that is best on validation.

    `by_base` has the same baselines for each base model by name. The first of equal scores wins. A
    baseline without a base model is that of the first.
    """
    best = []
    for each in zip(*by_base.values(), strict=True):
        versions = dict(zip(by_base, each, strict=True))
        best.append(_best_base(versions))
    return tuple(best)


def _best_base(versions: Mapping[str, Baseline]) -> Baseline:
    first = next(iter(versions.values()))
    uses_base = first.servable and spec_of(first.kind).uses_base
    if len(versions) == 1 or not uses_base:
        return first
    scores = {name: baseline.validation for name, baseline in versions.items()}
    name = max(scores, key=lambda each: scores[each])
    note = f"{versions[name].note}; with {name}, the best of {len(scores)} base models"
    return replace(versions[name], note=note, base_models=scores)


def ranked_bases(baselines: Sequence[Baseline]) -> tuple[str, ...]:
    """Return the names of the base models by their best baseline on validation, best first; none if
    there is one base model."""
    best: dict[str, float] = {}
    for baseline in baselines:
        for name, score in baseline.base_models.items():
            best[name] = max(score, best.get(name, score))
    return tuple(sorted(best, key=lambda name: -best[name]))


def select_incumbent(baselines: Sequence[Baseline]) -> Baseline:
    """Return the model that the candidate must beat: the champion, or else the best servable
    baseline on validation.

    The champion is not compared by its validation score: by chance, one of several baselines often
    scores higher on validation than a champion that is better. The first of equal scores wins. At
    least one baseline must be servable.
    """
    servable = [baseline for baseline in baselines if baseline.servable]
    champion = next((baseline for baseline in servable if baseline.kind == CHAMPION), None)
    return champion or max(servable, key=lambda baseline: baseline.validation)


def other_baselines(baselines: Sequence[Baseline]) -> OtherBaselines:
    """Return the servable baselines other than the incumbent that predict the test rows, best on
    validation first.

    Pretrained models, heads on a frozen encoder and bags of words are cheap, and all of them can
    block a fine-tuned model. The best `NUM_REPLACING` on validation can also replace the incumbent.
    The contenders that a recipe names can replace the incumbent in any case.
    """
    incumbent = select_incumbent(baselines)
    ranked = sorted(baselines, key=lambda baseline: -baseline.validation)
    ranked = [baseline for baseline in ranked if baseline.servable and baseline is not incumbent]
    replacing = ranked[:NUM_REPLACING]
    replacing += [one for one in ranked if one.kind not in KINDS and one not in replacing]
    tested = [one for one in ranked if one in replacing or spec_of(one.kind).is_always_tested]
    return OtherBaselines(tuple(tested), tuple(baseline.kind for baseline in replacing))
