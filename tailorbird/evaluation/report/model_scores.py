"""Compute the scores, the reliability and the confusions of the models of a run from their
predictions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.baselines.baseline import Baseline, select_incumbent
from tailorbird.evaluation.gates.calibration import bins_of, has_confidences
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import Confusion, ModelScore, ReliabilityBin, SuiteScore
from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX
from tailorbird.evaluation.verdict.types import Verdict

COMPARED = ("candidate", "incumbent")
MAX_CONFUSIONS = 20


def model_scores(
    baselines: Sequence[Baseline],
    *,
    candidate: tuple[str, float] | None,
    num_validation: int,
    verdict: Verdict,
) -> tuple[ModelScore, ...]:
    """Return the scores of each baseline, then of the candidate with this kind and validation
    score, if there is one.

    Only models that predicted the test rows have test scores.
    """
    is_share = METRICS[verdict.metric].is_share
    incumbent = select_incumbent(baselines)
    scores = []
    for baseline in baselines:
        score = ModelScore(
            kind=baseline.kind,
            validation=baseline.validation,
            interval=None,
            test=None,
            role=None,
            servable=baseline.servable,
            base_models=baseline.base_models,
        )
        if baseline is incumbent:
            score = replace(score, role="incumbent", test=verdict.incumbent.score)
        elif verdict.has(baseline.kind):
            score = replace(score, role="contender", test=verdict.model(baseline.kind).score)
        scores.append(score)
    if candidate is not None:
        kind, validation = candidate
        test = verdict.model("candidate").score
        scores.append(ModelScore(kind, validation, interval=None, test=test, role="candidate"))

    if not is_share:
        return tuple(scores)
    with_intervals = []
    for score in scores:
        num_right = round(score.validation * num_validation)
        interval = wilson_interval(num_right, n=num_validation)
        with_intervals.append(replace(score, interval=interval))
    return tuple(with_intervals)


def figures(
    tables: Mapping[str, Predictions], *, suites: Sequence[str], roles: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of the evidence that are computed from predictions only, by name.

    `tables` are without rows that a model was trained on, and `roles` are those of all compared
    models.
    """
    return {
        "reliability": reliability_by_role(tables),
        "confusions": confusions(tables),
        "suites": suite_scores(tables, suites=suites, roles=roles),
    }


def reliability_by_role(tables: Mapping[str, Predictions]) -> dict[str, tuple[ReliabilityBin, ...]]:
    """Return `reliability_bins` of candidate, if there is one, and incumbent by role.

    Empty for chat tasks, because their confidence is about tokens and not about the correctness of
    the answer.
    """
    if tables["incumbent"].measures:
        return {}
    return {role: reliability_bins(tables[role]) for role in COMPARED if role in tables}


def confusions(tables: Mapping[str, Predictions]) -> tuple[Confusion, ...] | None:
    """Return the confusions of the test rows that only one of candidate and incumbent answers
    correctly.

    They are sorted by the number of rows, up to `MAX_CONFUSIONS`. None without a candidate, and for
    chat tasks, whose answers are texts.
    """
    candidate = tables.get("candidate")
    incumbent = tables["incumbent"]
    if candidate is None or candidate.measures:
        return None
    fixed = Counter[tuple[str, str]]()
    made = Counter[tuple[str, str]]()
    for label, new, old in zip(candidate.labels, candidate.outputs, incumbent.outputs, strict=True):
        if new == label != old:
            fixed[label, old] += 1
        elif old == label != new:
            made[label, new] += 1
    rows = [Confusion(*pair, fixed=fixed[pair], made=made[pair]) for pair in fixed | made]
    rows.sort(key=lambda row: (-row.fixed - row.made, row.label, row.output))
    return tuple(rows[:MAX_CONFUSIONS])


def reliability_bins(table: Predictions) -> tuple[ReliabilityBin, ...]:
    """Return the non-empty bins of equal width of the confidence after temperature scaling
    (`calibration.bins_of`).

    There are none for a model without confidences.
    """
    if not has_confidences(table):
        return ()
    bins = bins_of(table.calibrated)
    reliability = []
    for index in np.unique(bins):
        is_in_bin = bins == index
        reliability_bin = ReliabilityBin(
            confidence=float(table.calibrated[is_in_bin].mean()),
            accuracy=float(table.scores[is_in_bin].mean()),
            n=int(is_in_bin.sum()),
        )
        reliability.append(reliability_bin)
    return tuple(reliability)


def suite_scores(
    tables: Mapping[str, Predictions], *, suites: Sequence[str], roles: Sequence[str]
) -> tuple[SuiteScore, ...]:
    """Return the scores on each suite: all rows, then the rows of each group.

    A model that cannot answer some of the rows has no score.
    """
    scores = []
    for suite in suites:
        answers = {role: tables[f"{role}_{SUITE_PREFIX}{suite}"] for role in roles}
        groups = np.array(answers[roles[0]].groups.get("group", ()), dtype=object)
        rows: dict[str | None, NDArray[np.int64]] = {None: np.arange(len(answers[roles[0]]))}
        rows |= {group: np.flatnonzero(groups == group) for group in sorted(set(groups.tolist()))}
        for group, members in rows.items():
            means: dict[str, float | None] = {}
            for role, table in answers.items():
                mean = float(np.mean(table.scores[members]))
                means[role] = None if np.isnan(mean) else mean
            scores.append(SuiteScore(suite, group, n=len(members), scores=means))
    return tuple(scores)
