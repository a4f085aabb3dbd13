"""Behavioral gates: predictions that change when a name, sex or age is swapped, or with a typing error."""

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
    """Evaluate whether the candidate's answer changes with a name, sex or age much more often than the incumbent's.

    A row's answer changes if that to one of its changed texts differs from that to the clean row; a row counts once,
    since its texts are not independent. The difference of the two rates is paired by row, with Newcombe's interval.
    Raises VerdictRefused if the tables are not of the same rows.
    """
    if not len(candidate[1]) and not len(incumbent[1]):
        return gate("counterfactual", (), note="no text names a sex, an age or a given name that could be swapped")
    positions = _aligned(candidate, incumbent)
    flips = [_flips(tables, positions=positions) for tables in (candidate, incumbent)]
    rows, row_of = np.unique(positions, return_inverse=True)
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
    by_kind = ", ".join(f"{kind} {turned[0][kind]} and {turned[1][kind]} of {kinds[kind]}" for kind in sorted(kinds))
    note = f"texts that turned the candidate's and the incumbent's answer: {by_kind}"
    return gate("counterfactual", (bound,), note=note)


def robustness_gate(*, candidate: Tables, incumbent: Tables, limits: RobustnessGateConfig, alpha: float) -> Gate:
    """Evaluate whether typing errors, case and white space cost the candidate much more score than the incumbent.

    A row's drop is its clean score less its changed one; the mean difference of the drops has a paired bootstrap
    interval, by row, or by document. Raises VerdictRefused if the tables are not of the same rows.
    """
    positions = _aligned(candidate, incumbent)
    ours, theirs = (clean.scores[positions] - changed.scores for clean, changed in (candidate, incumbent))
    clusters = [(candidate[0].clusters or candidate[0].row_ids)[position] for position in positions]
    num_units = len(set(clusters))
    if num_units < 2:
        return gate("robustness", (), note="one row or document alone has no spread, so no interval")
    effect = bootstrap.mean_effect(ours, other_scores=theirs, alpha=alpha, clusters=clusters)
    bound = at_most(
        limits.max_extra_drop,
        what="score lost to typing errors, case and white space, candidate minus incumbent",
        estimate=effect.gain,
        interval=at_least_unseen(effect.interval, estimate=effect.gain, n=num_units, alpha=alpha),
        n=len(set(positions.tolist())),
    )
    note = f"the candidate loses {100 * ours.mean():.2f} points, the incumbent {100 * theirs.mean():.2f}"
    return gate("robustness", (bound,), note=note)


def _aligned(candidate: Tables, incumbent: Tables) -> NDArray[np.int64]:
    """Return the position of the clean row that each changed row was made from [M]; check that all four tables fit."""
    align(candidate[0], incumbent[0])
    align(candidate[1], incumbent[1])
    clean, changed = candidate
    position_of = {row_id: position for position, row_id in enumerate(clean.row_ids)}
    sources = [row_id.rpartition("|")[0] for row_id in changed.row_ids]
    for source, row_id, label in zip(sources, changed.row_ids, changed.labels, strict=True):
        if source not in position_of:
            raise VerdictRefused(f"changed row {row_id!r} comes of no row that {clean.model} predicted unchanged")
        if clean.labels[position_of[source]] != label:
            raise VerdictRefused(f"changed row {row_id!r} has the label {label!r}, and another where it is unchanged")
    return np.array([position_of[source] for source in sources], dtype=np.int64)


def _flips(tables: Tables, *, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    clean, changed = tables
    turned = [output != clean.outputs[position] for output, position in zip(changed.outputs, positions, strict=True)]
    return np.array(turned, dtype=np.float64)
