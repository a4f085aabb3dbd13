"""The decision, a pure function: from two models' predictions on the same test rows to an outcome with its reasons."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from tailorbird.evaluation.hybrid import apply_routing, hybrid_cost, share_to_candidate
from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused
from tailorbird.evaluation.statistics.paired import Comparison, compare, holm
from tailorbird.evaluation.statistics.power import power_analysis
from tailorbird.evaluation.verdict import explain
from tailorbird.evaluation.verdict.gates import evaluate_gates, measured_cost_ratio
from tailorbird.evaluation.verdict.inputs import VerdictInputs, require_same_rows
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import CHEAPER_RATIO, OUTCOME_OF_RULE, Facts, Outcome, select_rule
from tailorbird.evaluation.verdict.types import HybridVerdict, Verdict

__all__ = ["ModelPredictions", "Outcome", "TestProtocol", "Verdict", "VerdictInputs", "VerdictRefused", "decide"]


SECOND_METRIC = {
    "accuracy": "macro_f1",
    "macro_f1": "accuracy",
    "exact_match": "token_f1",
    "token_f1": "exact_match",
    "rouge_l": "exact_match",
}
"""What is told beside each metric, for the record."""


def decide(case: VerdictInputs, *, question: TestProtocol) -> Verdict:
    """The verdict on replacing the incumbent by the candidate: the first rule of the outcome table that holds.

    Raises VerdictRefused (rule 1) where test rows changed, or predictions are misaligned or not finite; ValueError
    where the reference, or predictions or measurements that the question's gates need, are missing.
    """
    require_same_rows(case, question=question)
    main, beside = _compared(case.candidate.clean, case=case, question=question)
    gates = evaluate_gates(case.candidate, incumbent=case.incumbent, case=case, question=question)
    proven = _gained(main, p_value=main.p_value, question=question) and _beaten(beside)
    hybrid = _hybrid(case, main=main, question=question)
    ratio = measured_cost_ratio(case.cpu, alpha=question.alpha)
    facts = Facts(
        leaks=bool(case.leaks),
        proven=proven,
        low=main.interval[0],
        high=main.interval[1],
        minimum_gain=question.minimum_gain,
        regulated=question.regulated,
        gates={gate.name: gate.state for gate in gates},
        hybrid_proven=hybrid is not None and hybrid.proven,
        hybrid_gates={gate.name: gate.state for gate in hybrid.gates} if hybrid else {},
        cheaper=ratio is not None and ratio[2] < CHEAPER_RATIO,
    )
    rule = select_rule(facts)
    size = power_analysis(
        main, expected_gain=question.expected_gain, minimum_gain=question.minimum_gain, alpha=question.alpha
    )
    told = explain.ExplanationInputs(main, beside, question, gates, size.needed, hybrid, ratio, case.leaks)
    return Verdict(
        outcome=OUTCOME_OF_RULE[rule],
        rule=rule,
        reasons=explain.explain(rule, told),
        confirmatory=case.look == 1,
        proven=proven,
        gates=gates,
        cost_ratio=ratio,
        hybrid=hybrid,
        minimum_detectable_effect=size.minimum_detectable_effect,
        power_at_expected_gain=size.power_at_expected_gain,
        rows_needed=size.needed.rows,
        second_metric=_second_metric(case, question=question),
        **_figures(main, reference=beside, question=question),
    )


def _compared(
    candidate: Predictions, *, case: VerdictInputs, question: TestProtocol
) -> tuple[Comparison, Comparison | None]:
    """Against the incumbent, and against the reference where there is one."""
    against = partial(compare, candidate, metric=question.metric, alpha=question.alpha)
    return against(other=case.incumbent.clean), None if case.reference is None else against(other=case.reference)


def _beaten(beside: Comparison | None) -> bool:
    return beside is None or beside.interval[0] > 0


def _gained(main: Comparison, *, p_value: float, question: TestProtocol) -> bool:
    return p_value < question.alpha and main.interval[0] > 0 and main.gain >= question.minimum_gain


def _hybrid(case: VerdictInputs, *, main: Comparison, question: TestProtocol) -> HybridVerdict | None:
    if case.routing is None or question.hybrid is None:
        return None
    side = apply_routing(case.routing, incumbent=case.incumbent, candidate=case.candidate)
    share = share_to_candidate(case.routing, case.incumbent.clean)
    against, beside = _compared(side.clean, case=case, question=question)
    assert beside is not None  # the schema keeps hybrids to classification
    _, adjusted = holm([main.p_value, against.p_value])
    cpu = hybrid_cost(case.routing, cpu=case.cpu, share=share) if case.cpu else None
    as_case = VerdictInputs(
        case.incumbent, side, case.reference, case.test_sha256, cpu=cpu, training_cpu_s=case.training_cpu_s
    )
    return HybridVerdict(
        routing=asdict(case.routing) | {"values": list(case.routing.values)},
        share_to_candidate=share,
        score=against.candidate_score,
        gain=against.gain,
        interval=against.interval,
        p_value=against.p_value,
        p_holm=adjusted,
        reference_interval=beside.interval,
        proven=_gained(against, p_value=adjusted, question=question) and _beaten(beside),
        gates=evaluate_gates(side, incumbent=case.incumbent, case=as_case, question=question),
    )


def _second_metric(case: VerdictInputs, *, question: TestProtocol) -> dict[str, Any]:
    metric = SECOND_METRIC[question.metric]
    found = compare(case.candidate.clean, other=case.incumbent.clean, metric=metric, alpha=question.alpha)
    return {
        "metric": metric,
        "incumbent": found.other_score,
        "candidate": found.candidate_score,
        "gain": found.gain,
        "interval": list(found.interval),
        "p_value": found.p_value,
    }


def _figures(main: Comparison, *, reference: Comparison | None, question: TestProtocol) -> dict[str, Any]:
    return {
        "metric": question.metric,
        "n": main.counts.n,
        "alpha": question.alpha,
        "minimum_gain": question.minimum_gain,
        "expected_gain": question.expected_gain,
        "regulated": question.regulated,
        "incumbent_score": main.other_score,
        "candidate_score": main.candidate_score,
        "gain": main.gain,
        "interval": main.interval,
        "p_value": main.p_value,
        "p_exact": main.p_exact,
        "only_incumbent_right": main.counts.only_other_right,
        "only_candidate_right": main.counts.only_candidate_right,
        "reference_score": reference and reference.other_score,
        "reference_gain": reference and reference.gain,
        "reference_interval": reference and reference.interval,
        "reference_p_value": reference and reference.p_value,
    }
