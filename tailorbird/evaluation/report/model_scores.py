"""Compute the scores and the reliability of the models of a run from their predictions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.baselines.baseline import Baseline, select_incumbent
from tailorbird.evaluation.gates.calibration import NUM_BINS, has_confidences
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import Confusion, ModelScore, ReliabilityBin
from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.evaluation.verdict.types import Verdict

COMPARED = ("candidate", "incumbent")
MAX_CONFUSIONS = 20


def model_scores(
    baselines: Sequence[Baseline], *, candidate: tuple[str, float] | None, num_validation: int, verdict: Verdict
) -> tuple[ModelScore, ...]:
    """Return the scores of each baseline, then of the candidate with this kind and validation score, if there is one.

    Only models that predicted the test rows have test scores.
    """
    incumbent = select_incumbent(baselines)
    scores = []
    for baseline in baselines:
        score = ModelScore(
            baseline.kind, baseline.validation, interval=None, test=None, role=None, servable=baseline.servable
        )
        if baseline is incumbent:
            score = replace(score, role="incumbent", test=verdict.incumbent.score)
        elif verdict.has(baseline.kind):
            score = replace(score, role="contender", test=verdict.model(baseline.kind).score)
        scores.append(score)
    if candidate is not None:
        test = verdict.model("candidate").score
        scores.append(ModelScore(*candidate, interval=None, test=test, role="candidate"))
    if not METRICS[verdict.metric].is_share:  # a Wilson interval needs a metric that is a share of rows
        return tuple(scores)
    n = num_validation
    return tuple(replace(score, interval=wilson_interval(round(score.validation * n), n=n)) for score in scores)


def reliability_by_role(tables: Mapping[str, Predictions]) -> dict[str, tuple[ReliabilityBin, ...]]:
    """Return `reliability_bins` of candidate, if there is one, and incumbent by role.

    Empty for chat tasks, because their confidence is about tokens and not about the correctness of the answer.
    """
    if tables["incumbent"].measures:
        return {}
    return {role: reliability_bins(tables[role]) for role in COMPARED if role in tables}


def confusions(tables: Mapping[str, Predictions]) -> tuple[Confusion, ...] | None:
    """Return the confusions of the test rows that only one of candidate and incumbent answers correctly.

    They are sorted by the number of rows, up to `MAX_CONFUSIONS`. None without a candidate, and for chat tasks, whose
    answers are texts.
    """
    candidate = tables.get("candidate")
    incumbent = tables["incumbent"]
    if candidate is None or candidate.measures:
        return None
    fixed, made = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for label, new, old in zip(candidate.labels, candidate.outputs, incumbent.outputs, strict=True):
        if new == label != old:
            fixed[label, old] += 1
        elif old == label != new:
            made[label, new] += 1
    rows = [Confusion(*pair, fixed=fixed[pair], made=made[pair]) for pair in fixed | made]
    return tuple(sorted(rows, key=lambda row: (-row.fixed - row.made, row.label, row.output))[:MAX_CONFUSIONS])


def mean_measures(tables: Mapping[str, Predictions]) -> dict[str, dict[str, float]]:
    """(chat only) Return the mean log-likelihood of the reference answers by role, in nats per token."""
    name = "log_likelihood"
    compared = [role for role in COMPARED if role in tables]
    if not all(name in tables[role].measures for role in compared):
        return {}
    return {name: {role: float(np.mean(tables[role].measures[name])) for role in compared}}


def reliability_bins(table: Predictions, *, num_bins: int = NUM_BINS) -> tuple[ReliabilityBin, ...]:
    """Return the non-empty bins of equal width of the confidence after temperature scaling.

    The function `tailorbird.evaluation.gates.calibration.ece` uses the same bins. There are none for a model without
    confidences.
    """
    if not has_confidences(table):
        return ()
    right = np.array(table.labels, dtype=object) == np.array(table.outputs, dtype=object)
    bins = np.minimum((table.calibrated * num_bins).astype(np.int64), num_bins - 1)
    return tuple(
        ReliabilityBin(
            confidence=float(table.calibrated[bins == index].mean()),
            accuracy=float(right[bins == index].mean()),
            n=int(np.sum(bins == index)),
        )
        for index in sorted(set(bins.tolist()))
    )
