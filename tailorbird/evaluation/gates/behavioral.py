"""Beside the verdict: whether answers turn with a person's name, sex or age, or with a typing error."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import CounterfactualGateConfig, RobustnessGateConfig
from tailorbird.evaluation.gates.base import Gate, at_most, gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics import bootstrap
from tailorbird.evaluation.statistics.bootstrap import at_least_unseen
from tailorbird.evaluation.statistics.paired import newcombe_paired_interval, paired_counts

Tables = tuple[Predictions, Predictions]
"""A model's predictions of the clean rows, and of the changed ones; `row_id|kind` is a change of row `row_id`."""


def counterfactual_gate(
    *, candidate: Tables, incumbent: Tables, limits: CounterfactualGateConfig, alpha: float
) -> Gate:
    """Whether the candidate's answer turns with a person's name, sex or age much more often than the incumbent's.

    A row's answer turns where that to one of its changed texts is not the same model's answer to the row as it was; a
    row counts once however many texts came of it, since rows are independent and texts of one row are not. The
    difference of the two rates is paired by row, with Newcombe's interval. Raises VerdictRefused where the tables are
    not of the same rows.
    """
    if not len(candidate[1]) and not len(incumbent[1]):
        return gate("counterfactual", (), note="no text names a sex, an age or a given name that could be swapped")
    places = _aligned(candidate, incumbent)
    flips = [_flips(tables, places=places) for tables in (candidate, incumbent)]
    rows, row_of = np.unique(places, return_inverse=True)
    ours, theirs = (np.bincount(row_of, weights=flipped, minlength=len(rows)).clip(max=1) for flipped in flips)
    counts = paired_counts(ours, other=theirs)
    bound = at_most(
        limits.max_increase,
        what="share of rows whose answer turns with a name, sex or age, candidate minus incumbent",
        estimate=counts.gain,
        interval=newcombe_paired_interval(counts, alpha=alpha),
        n=counts.n,
    )
    kinds = Counter(row_id.rpartition("|")[2] for row_id in candidate[1].row_ids)
    turned = [
        Counter(row_id.rpartition("|")[2] for row_id, flip in zip(candidate[1].row_ids, flipped, strict=True) if flip)
        for flipped in flips
    ]
    told = ", ".join(f"{kind} {turned[0][kind]} and {turned[1][kind]} of {kinds[kind]}" for kind in sorted(kinds))
    return gate(
        "counterfactual", (bound,), note=f"texts that turned the candidate's and the incumbent's answer: {told}"
    )


def robustness_gate(*, candidate: Tables, incumbent: Tables, limits: RobustnessGateConfig, alpha: float) -> Gate:
    """Whether typing errors, case and white space cost the candidate much more of its score than the incumbent.

    A row's drop is its clean score less its changed one; the mean difference of the drops has a paired bootstrap
    interval, by row, or by document where rows share some. Raises VerdictRefused where the tables are not of the same
    rows, or no row was changed.
    """
    places = _aligned(candidate, incumbent)
    ours, theirs = (clean.scores[places] - changed.scores for clean, changed in (candidate, incumbent))
    clusters = [(candidate[0].clusters or candidate[0].row_ids)[place] for place in places]
    num_units = len(set(clusters))
    if num_units < 2:
        return gate("robustness", (), note="one row or document alone has no spread, so no interval")
    effect = bootstrap.mean_effect(ours, other_scores=theirs, alpha=alpha, clusters=clusters)
    bound = at_most(
        limits.max_extra_drop,
        what="score lost to typing errors, case and white space, candidate minus incumbent",
        estimate=effect.gain,
        interval=at_least_unseen(effect.interval, estimate=effect.gain, n=num_units, alpha=alpha),
        n=len(set(places.tolist())),
    )
    note = f"the candidate loses {100 * ours.mean():.2f} points, the incumbent {100 * theirs.mean():.2f}"
    return gate("robustness", (bound,), note=note)


def _aligned(candidate: Tables, incumbent: Tables) -> NDArray[np.int64]:
    """For each changed row the place of the clean row it came of [M]; all four tables must fit each other."""
    align(candidate[0], incumbent[0])
    align(candidate[1], incumbent[1])
    clean, changed = candidate
    place_of = {row_id: place for place, row_id in enumerate(clean.row_ids)}
    sources = [row_id.rpartition("|")[0] for row_id in changed.row_ids]
    for source, row_id, label in zip(sources, changed.row_ids, changed.labels, strict=True):
        if source not in place_of:
            raise VerdictRefused(f"changed row {row_id!r} comes of no row that {clean.model} predicted unchanged")
        if clean.labels[place_of[source]] != label:
            raise VerdictRefused(f"changed row {row_id!r} has the label {label!r}, and another where it is unchanged")
    return np.array([place_of[source] for source in sources], dtype=np.int64)


def _flips(tables: Tables, *, places: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    clean, changed = tables
    turned = [output != clean.outputs[place] for output, place in zip(changed.outputs, places, strict=True)]
    return np.array(turned, dtype=np.float64)
