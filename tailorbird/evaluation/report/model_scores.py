"""Compute the scores and the reliability of the models of a run from their predictions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tailorbird.data.quality import DataReport
from tailorbird.evaluation.baselines.baseline import Baseline, further_contenders, select_incumbent
from tailorbird.evaluation.gates.calibration import NUM_BINS, has_confidences
from tailorbird.evaluation.predictions import ROW_METRICS, Predictions
from tailorbird.evaluation.report.evidence import Confusion, DistinctRecord, ModelScore, ReliabilityBin, TrainedRows
from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.evaluation.statistics.scoring import macro_f1, score_table
from tailorbird.evaluation.verdict.types import Verdict

COMPARED = ("candidate", "incumbent")
MAX_CONFUSIONS = 20


def model_scores(
    baselines: Sequence[Baseline], *, kind: str, validation: float, num_validation: int, verdict: Verdict
) -> tuple[ModelScore, ...]:
    """Return the scores of each baseline, then of the candidate with this kind and validation score.

    Only models that predicted the test rows have test scores.
    """
    incumbent, further = select_incumbent(baselines), further_contenders(baselines)
    tested = {contender.role: contender.score for contender in verdict.contenders}
    scores = []
    for baseline in baselines:
        score = ModelScore(
            baseline.kind, baseline.validation, interval=None, test=None, role=None, servable=baseline.servable
        )
        if baseline is incumbent:
            score = replace(score, role="incumbent", test=verdict.incumbent_score)
        elif baseline in further and baseline.kind in tested:
            score = replace(score, role="contender", test=tested[baseline.kind])
        scores.append(score)
    scores.append(ModelScore(kind, validation, interval=None, test=verdict.candidate_score, role="candidate"))
    if verdict.metric not in ROW_METRICS:  # a Wilson interval needs a metric that is a share of rows
        return tuple(scores)
    n = num_validation
    return tuple(replace(score, interval=wilson_interval(round(score.validation * n), n=n)) for score in scores)


def reliability_by_role(tables: Mapping[str, Predictions]) -> dict[str, tuple[ReliabilityBin, ...]]:
    """Return `reliability_bins` of candidate and incumbent by role.

    Empty for chat tasks, because their confidence is about tokens and not about the correctness of the answer.
    """
    return {} if tables[COMPARED[0]].measures else {role: reliability_bins(tables[role]) for role in COMPARED}


def confusions(tables: Mapping[str, Predictions]) -> tuple[Confusion, ...] | None:
    """Return the confusions of the test rows that only one of candidate and incumbent answers correctly.

    They are sorted by the number of rows, up to `MAX_CONFUSIONS`. None for chat tasks, whose answers are texts.
    """
    candidate, incumbent = (tables[role] for role in COMPARED)
    if candidate.measures:
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
    if not all(name in tables[role].measures for role in COMPARED):
        return {}
    return {name: {role: float(np.mean(tables[role].measures[name])) for role in COMPARED}}


def scores_without_near_duplicates(
    tables: Mapping[str, Predictions], *, contenders: Sequence[str], report: DataReport, metric: str
) -> DistinctRecord | None:
    """Return the scores of candidate, incumbent and `contenders` on the test rows without a near-duplicate in train.

    Return None if no test row has a near-duplicate, if all have one, or if only a sample of the test rows, or of
    streamed training rows, was compared.
    """
    near = set(report.near_duplicate_test_rows)
    rows = [row for row, row_id in enumerate(tables[COMPARED[0]].row_ids) if row_id not in near]
    sampled = report.near_duplicates_compared < report.num_test or report.num_in_memory is not None
    if not near or not rows or sampled:
        return None
    roles = (*COMPARED, *contenders)
    return DistinctRecord(len(rows), {role: _score(tables[role], rows=rows, metric=metric) for role in roles})


def scores_on_all_rows(
    tables: Mapping[str, Predictions], *, roles: Sequence[str], trained: TrainedRows, metric: str
) -> DistinctRecord | None:
    """Return the scores on all test rows; None if no compared model was trained on one of them."""
    if not trained.excluded:
        return None
    scores = {role: score_table(metric, tables[role]) for role in roles}
    return DistinctRecord(len(tables[COMPARED[0]]), scores)


def _score(table: Predictions, *, rows: Sequence[int], metric: str) -> float:
    if metric == "macro_f1":
        return macro_f1([table.labels[row] for row in rows], outputs=[table.outputs[row] for row in rows])
    return float(table.per_row(metric)[list(rows)].mean())


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
