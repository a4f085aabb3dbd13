"""Decide between two models from their predictions on the same test rows (a pure function)."""

from dataclasses import replace

from tailorbird.evaluation.hybrid import apply_routing, hybrid_cost, share_to_candidate
from tailorbird.evaluation.statistics.paired import Comparison, compare, holm
from tailorbird.evaluation.statistics.power import power_analysis
from tailorbird.evaluation.verdict.explain import ExplanationInputs, explain, further_access
from tailorbird.evaluation.verdict.gates import evaluate_gates, measured_cost_ratio, states_of
from tailorbird.evaluation.verdict.inputs import VerdictInputs, require_same_rows
from tailorbird.evaluation.verdict.protocol import TestProtocol, spent_alpha
from tailorbird.evaluation.verdict.rules import CHEAPER_RATIO, OUTCOME_OF_RULE, Facts, select_rule
from tailorbird.evaluation.verdict.types import HybridVerdict, SecondMetric, Verdict

SECOND_METRIC = {
    "accuracy": "macro_f1",
    "macro_f1": "accuracy",
    "exact_match": "token_f1",
    "token_f1": "exact_match",
    "rouge_l": "exact_match",
}
"""The second metric that is reported with each metric; no rule reads it."""


def decide(inputs: VerdictInputs, *, protocol: TestProtocol) -> Verdict:
    """Return the verdict on replacing the incumbent with the candidate.

    The first rule of the outcome table that holds decides. Gates have the level of the protocol, because they only
    prevent a change of model; everything else has the level of the access to the test rows. Raises VerdictRefused (rule
    1) if test rows changed or predictions are misaligned or not finite. Raises ValueError if predictions or
    measurements that the protocol's gates need are missing.
    """
    require_same_rows(inputs, protocol=protocol)
    candidate, incumbent = inputs.candidate.clean, inputs.incumbent.clean
    alpha = spent_alpha(protocol.alpha, access_number=inputs.access_number)
    main = compare(candidate, other=incumbent, metric=protocol.metric, alpha=alpha)
    gates = evaluate_gates(inputs, protocol=protocol)
    proven = _is_proven(main, p_value=main.p_value, minimum_gain=protocol.minimum_gain, alpha=alpha)
    hybrid = _hybrid(inputs, main=main, protocol=protocol, alpha=alpha)
    ratio = measured_cost_ratio(inputs.cpu, alpha=alpha)
    facts = Facts(
        leaks=bool(inputs.leaks),
        proven=proven,
        low=main.interval[0],
        high=main.interval[1],
        minimum_gain=protocol.minimum_gain,
        regulated=protocol.regulated,
        gates=states_of(gates),
        hybrid_proven=hybrid is not None and hybrid.proven,
        hybrid_gates=states_of(hybrid.gates) if hybrid else {},
        cheaper=ratio is not None and ratio[2] < CHEAPER_RATIO,
    )
    rule = select_rule(facts)
    power = power_analysis(main, expected_gain=protocol.expected_gain, minimum_gain=protocol.minimum_gain, alpha=alpha)
    explained = ExplanationInputs(main, protocol, alpha, gates, power.needed, hybrid, ratio, inputs.leaks)
    return Verdict(
        outcome=OUTCOME_OF_RULE[rule],
        rule=rule,
        reasons=(*explain(rule, explained), *further_access(inputs, alpha=alpha, protocol_alpha=protocol.alpha)),
        metric=protocol.metric,
        n=main.counts.n,
        alpha=alpha,
        protocol_alpha=protocol.alpha,
        access_number=inputs.access_number,
        minimum_gain=protocol.minimum_gain,
        expected_gain=protocol.expected_gain,
        regulated=protocol.regulated,
        incumbent_kind=incumbent.model,
        candidate_kind=candidate.model,
        incumbent_score=main.other_score,
        candidate_score=main.candidate_score,
        gain=main.gain,
        interval=main.interval,
        p_value=main.p_value,
        p_exact=main.p_exact,
        only_incumbent_right=main.counts.only_other_right,
        only_candidate_right=main.counts.only_candidate_right,
        second_metric=_second_metric(inputs, metric=SECOND_METRIC[protocol.metric], alpha=alpha),
        minimum_detectable_effect=power.minimum_detectable_effect,
        power_at_expected_gain=power.power_at_expected_gain,
        rows_needed=power.needed.rows,
        proven=proven,
        gates=gates,
        cost_ratio=ratio,
        hybrid=hybrid,
    )


def _is_proven(main: Comparison, *, p_value: float, minimum_gain: float, alpha: float) -> bool:
    return p_value < alpha and main.interval[0] > 0 and main.gain >= minimum_gain


def _hybrid(inputs: VerdictInputs, *, main: Comparison, protocol: TestProtocol, alpha: float) -> HybridVerdict | None:
    if inputs.routing is None or protocol.hybrid is None:
        return None
    hybrid = apply_routing(inputs.routing, incumbent=inputs.incumbent, candidate=inputs.candidate)
    share = share_to_candidate(inputs.routing, inputs.incumbent.clean)
    against = compare(hybrid.clean, other=inputs.incumbent.clean, metric=protocol.metric, alpha=alpha)
    _, adjusted = holm([main.p_value, against.p_value])
    cpu = hybrid_cost(inputs.routing, cpu=inputs.cpu, share=share) if inputs.cpu else None
    return HybridVerdict(
        routing=inputs.routing,
        share_to_candidate=share,
        score=against.candidate_score,
        gain=against.gain,
        interval=against.interval,
        p_value=against.p_value,
        p_holm=adjusted,
        proven=_is_proven(against, p_value=adjusted, minimum_gain=protocol.minimum_gain, alpha=alpha),
        gates=evaluate_gates(replace(inputs, candidate=hybrid, cpu=cpu), protocol=protocol),
    )


def _second_metric(inputs: VerdictInputs, *, metric: str, alpha: float) -> SecondMetric:
    comparison = compare(inputs.candidate.clean, other=inputs.incumbent.clean, metric=metric, alpha=alpha)
    return SecondMetric(
        metric=metric,
        incumbent=comparison.other_score,
        candidate=comparison.candidate_score,
        gain=comparison.gain,
        interval=comparison.interval,
        p_value=comparison.p_value,
    )
