"""Build the evidence of a run from its record and its verdict."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.baselines.baseline import select_incumbent
from tailorbird.evaluation.gates.calibration import NUM_BINS
from tailorbird.evaluation.predictions import ROW_METRICS, Predictions
from tailorbird.evaluation.report.evidence import Evidence, ModelScore, ReliabilityBin
from tailorbird.evaluation.report.run_record import RunRecord
from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.types import Verdict

COMPARED = ("candidate", "incumbent")


def build_evidence(record: RunRecord, *, recipe: Recipe, protocol: TestProtocol, verdict: Verdict) -> Evidence:
    """Return the evidence of a finished run."""
    return Evidence(
        name=recipe.name,
        run=record.run,
        created_at=record.created_at,
        requested_by=record.requested_by,
        expires_at=record.expires_at,
        recipe=recipe,
        protocol=protocol,
        verdict=verdict,
        test_access=record.test_access,
        test_rows=record.test_rows,
        routing=record.routing,
        data=record.data,
        scores=_scores(record, verdict=verdict),
        sweep=record.sweep,
        sweep_ended=record.sweep_ended,
        seeds=record.seeds,
        averaged=record.averaged,
        curve=record.curve,
        training=record.training,
        cost=record.cost,
        reliability=reliability_by_role(record.predictions),
        measures=mean_measures(record.predictions),
        versions=dict(record.versions),
        champion=record.champion,
        code=record.code,
        base_model=record.base_model,
    )


def reliability_by_role(tables: Mapping[str, Predictions]) -> dict[str, tuple[ReliabilityBin, ...]]:
    """Return `reliability_bins` of candidate and incumbent.

    Empty for a chat task, where confidence is about tokens, not about the answer being right.
    """
    return {} if mean_measures(tables) else {role: reliability_bins(tables[role]) for role in COMPARED}


def mean_measures(tables: Mapping[str, Predictions]) -> dict[str, dict[str, float]]:
    """(chat only) Return the mean log-likelihood of the reference answers by role, in nats a token."""
    name = "log_likelihood"
    if not all(name in tables[role].measures for role in COMPARED):
        return {}
    return {name: {role: float(np.mean(tables[role].measures[name])) for role in COMPARED}}


def reliability_bins(table: Predictions, *, num_bins: int = NUM_BINS) -> tuple[ReliabilityBin, ...]:
    """Return the bins that have rows, of equally wide bins of confidence after temperature.

    These are the bins of `tailorbird.evaluation.gates.calibration.ece`, which is their mean gap, weighted by n.
    """
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


def _scores(record: RunRecord, *, verdict: Verdict) -> tuple[ModelScore, ...]:
    """Return a row a baseline and one for the candidate; test scores only of the models that predicted test."""
    incumbent = select_incumbent(record.baselines)
    scores = []
    for baseline in record.baselines:
        score = ModelScore(baseline.kind, baseline.validation, interval=None, test=None, role=None)
        if baseline is incumbent:
            score = replace(score, role="incumbent", test=verdict.incumbent_score)
        elif baseline.kind == "tf_idf":
            score = replace(score, role="reference", test=verdict.reference_score)
        scores.append(score)
    kind, validation = record.versions["candidate"].kind, record.candidate_validation
    scores.append(ModelScore(kind, validation, interval=None, test=verdict.candidate_score, role="candidate"))
    if verdict.metric not in ROW_METRICS:  # no closed formula gives another metric's interval from a score
        return tuple(scores)
    n = record.data.report.num_validation
    return tuple(replace(score, interval=wilson_interval(round(score.validation * n), n=n)) for score in scores)
