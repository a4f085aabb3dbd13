"""Behavioral gates: predictions that change when a name, sex or age is swapped, and robustness to
typing errors."""

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import CounterfactualGateConfig, RobustnessGateConfig
from tailorbird.evaluation.gates.base import Estimate, Gate, State, gate, no_loss
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics.paired import mean_change

Tables = tuple[Predictions, Predictions]
"""A model's predictions for the clean rows and for the changed rows; changed row ids are
`<row_id>|<kind>`."""


def counterfactual_gate(
    *, candidate: Tables, incumbent: Tables, limits: CounterfactualGateConfig, alpha: float
) -> Gate:
    """Compare how often swapping a name, sex or age changes the predictions of the two models.

    A row counts as changed if any of its changed texts gets another prediction than the clean text.
    A row counts once, because its changed texts are not independent. The difference of the two
    rates has the interval of `mean_change`. Without changed texts, the gate is not applicable.
    Raises VerdictRefused if the tables have different rows.
    """
    if not len(candidate[1]) and not len(incumbent[1]):
        none = (
            "no test row contains a sex, an age or a given name of the English word lists, so "
            "there is none to swap"
        )
        return Gate(name="counterfactual", state=State.NOT_APPLICABLE, bounds=(), note=none)
    positions = _aligned(candidate, incumbent)
    flips = [_flips(tables, positions=positions) for tables in (candidate, incumbent)]
    rows, row_of = np.unique(positions, return_inverse=True)
    has_flips = [np.bincount(row_of, weights=flipped).clip(max=1) for flipped in flips]
    clusters = _shared_clusters(candidate[0], rows)
    effect = mean_change(*has_flips, alpha=alpha, clusters=clusters)
    bound = no_loss(
        limits.margin,
        what="difference in the share of predictions that change with a name, sex or age "
        "(candidate minus incumbent)",
        loss=Estimate(value=effect.gain, interval=effect.interval, n=len(rows), alpha=alpha),
    )
    kinds = np.array([row_id.rpartition("|")[2] for row_id in candidate[1].row_ids])
    counts = []
    for kind in np.unique(kinds):
        is_kind = kinds == kind
        changed = [int(flipped[is_kind].sum()) for flipped in flips]
        counts.append(f"{kind} {changed[0]} and {changed[1]} of {is_kind.sum()}")
    note = (
        "swapped texts that change the prediction of the candidate and of the incumbent: "
        f"{', '.join(counts)}"
    )
    return gate("counterfactual", (bound,), note=note)


def robustness_gate(
    *, candidate: Tables, incumbent: Tables, limits: RobustnessGateConfig, alpha: float
) -> Gate:
    """Compare how much score the two models lose to typing errors, case and white space.

    The drop of a row is its clean score minus its score on the changed text. The mean difference of
    the drops has the interval of `mean_change`. Raises VerdictRefused if the tables have different
    rows.
    """
    positions = _aligned(candidate, incumbent)
    drops = [clean.scores[positions] - changed.scores for clean, changed in (candidate, incumbent)]
    clusters = _shared_clusters(candidate[0], positions)
    if len(positions) < 2 or (clusters is not None and len(set(clusters)) < 2):
        return gate("robustness", (), note="a single row or document has no interval")
    effect = mean_change(*drops, alpha=alpha, clusters=clusters)
    bound = no_loss(
        limits.margin,
        what="difference in the score lost to typing errors, case and white space (candidate "
        "minus incumbent)",
        loss=Estimate(
            value=effect.gain, interval=effect.interval, n=len(set(positions.tolist())), alpha=alpha
        ),
    )
    note = (
        f"the candidate loses {100 * drops[0].mean():.2f} points, the incumbent "
        f"{100 * drops[1].mean():.2f}"
    )
    return gate("robustness", (bound,), note=note)


def _aligned(candidate: Tables, incumbent: Tables) -> NDArray[np.int64]:
    """Return the position [M] of the clean row of each changed row; check that all four tables
    match."""
    align(candidate[0], incumbent[0])
    align(candidate[1], incumbent[1])
    clean, changed = candidate
    position_of = {row_id: position for position, row_id in enumerate(clean.row_ids)}
    sources = [row_id.rpartition("|")[0] for row_id in changed.row_ids]
    for source, row_id, label in zip(sources, changed.row_ids, changed.labels, strict=True):
        if source not in position_of:
            raise VerdictRefused(
                f"changed row {row_id!r} has no source row among the predictions of {clean.model}"
            )
        if clean.labels[position_of[source]] != label:
            raise VerdictRefused(
                f"changed row {row_id!r} has the label {label!r}, but its source row has another "
                "label"
            )
    return np.array([position_of[source] for source in sources], dtype=np.int64)


def _shared_clusters(clean: Predictions, positions: NDArray[np.int64]) -> list[str] | None:
    """Return the cluster of the row at each position; None if no two of the rows share one."""
    names = clean.clusters or clean.row_ids
    clusters = [names[position] for position in positions]
    if len(set(clusters)) == len(clusters):
        return None
    return clusters


def _flips(tables: Tables, *, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    clean, changed = tables
    before = np.array(clean.outputs, dtype=object)[positions]
    return np.array(np.array(changed.outputs, dtype=object) != before, dtype=np.float64)
