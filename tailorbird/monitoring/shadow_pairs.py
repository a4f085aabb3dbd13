"""Pair the answers of challenger and champion to the same audited texts, by request.

A shadow answers the champion's texts, so each request is compared with itself, with all answers of
its first audit: the answers to one request are dependent, so they count once, as their mean. Later
audits change no earlier comparison, so all decisions on a challenger are about one growing sequence
of independent requests. The shadow's missing answers have bounds: the score is between 0 and 1.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from tailorbird.monitoring.paired_decision import PairedDifferences
from tailorbird.monitoring.quality import audited_rows, group_masks
from tailorbird.monitoring.traffic import CHAMPION, SHADOW, Outcomes
from tailorbird.registry.versions import Frozen


class PairedOutcome(Frozen):
    """The audited answer of both versions to one text."""

    request: int  # code
    groups: tuple[str, ...]  # groups of the reference
    gain: float
    """The shadow's score minus the champion's."""
    missing: bool = False
    """True if the shadow failed to give the answer, which then has the score 0."""


def paired_outcomes(
    outcomes: Outcomes, *, columns: Sequence[str], fixed: Sequence[str]
) -> tuple[PairedOutcome, ...]:
    """Return the audited texts of the day that both versions answered, in the first audit of each
    request.

    `fixed` are the groups of the reference.
    """
    champion = audited_rows(outcomes, CHAMPION)
    shadow = audited_rows(outcomes, SHADOW)
    _, in_champion, in_shadow = np.intersect1d(
        outcomes.keys[champion], outcomes.keys[shadow], return_indices=True
    )
    masks = group_masks(outcomes, columns=columns, fixed=fixed)
    pairs = list(zip(champion[in_champion].tolist(), shadow[in_shadow].tolist(), strict=True))
    first_audits: dict[int, int] = {}
    for _, row in pairs:
        request = int(outcomes.requests[row])
        audit = int(outcomes.audits[row])
        first_audits[request] = min(audit, first_audits.get(request, audit))
    return tuple(
        PairedOutcome(
            request=int(outcomes.requests[row]),
            groups=tuple(name for name in fixed if masks[name][row]),
            gain=float(outcomes.scores[row] - outcomes.scores[champion_row]),
            missing=bool(outcomes.missing[row]),
        )
        for champion_row, row in pairs
        if outcomes.audits[row] == first_audits[int(outcomes.requests[row])]
    )


def paired_differences(
    outcomes: Sequence[PairedOutcome], *, group: str | None = None
) -> PairedDifferences:
    """Return the differences between challenger and champion by request, overall or in a group."""
    answers = Counter[int]()
    gains = defaultdict[int, float](float)
    missing = Counter[int]()
    for outcome in outcomes:
        if group is None or group in outcome.groups:
            answers[outcome.request] += 1
            gains[outcome.request] += outcome.gain
            missing[outcome.request] += outcome.missing
    return PairedDifferences(
        np.array([gains[request] / answers[request] for request in answers], np.float64),
        missing=np.array([missing[request] / answers[request] for request in answers], np.float64),
        num_missing=missing.total(),
        num_answers=answers.total(),
    )
