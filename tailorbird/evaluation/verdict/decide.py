"""Decide which model is served, from predictions on the same test rows (a pure function)."""

from tailorbird.config.answers import ANSWER_METRICS
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.statistics.posterior import posterior_of
from tailorbird.evaluation.verdict.assess import Assessment, assess
from tailorbird.evaluation.verdict.contender_costs import cheapest_sentences, contender_costs
from tailorbird.evaluation.verdict.explain import ExplanationInputs, explain, further_access
from tailorbird.evaluation.verdict.inputs import (
    VerdictInputs,
    require_same_rows,
    trained_rows_sentences,
    without_trained_rows,
)
from tailorbird.evaluation.verdict.parts import SecondMetric
from tailorbird.evaluation.verdict.power import power_of
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Outcome
from tailorbird.evaluation.verdict.types import Verdict, winner_of

SECOND_METRIC = {
    "accuracy": "macro_f1",
    "macro_f1": "accuracy",
    "exact_match": "token_f1",
    "token_f1": "exact_match",
    "rouge_l": "exact_match",
    **dict.fromkeys(ANSWER_METRICS, "exact_match"),
}
"""The second metric that is reported with each metric; no rule reads it."""


def decide(inputs: VerdictInputs, *, protocol: TestProtocol) -> Verdict:
    """Return the verdict on replacing the incumbent with the candidate.

    No model is compared on rows that one of them was trained on. The first rule of the outcome table that holds
    decides. Gates have the level of the protocol, because they only prevent a change of model; everything else has the
    level of the access to the test rows. Raises VerdictRefused (rule 1) if test rows changed or predictions are
    misaligned or not finite. Raises ValueError if predictions or measurements that the protocol's gates need are
    missing.
    """
    require_same_rows(inputs, protocol=protocol)
    of_training = trained_rows_sentences(
        inputs.trained_on, unknown=inputs.unknown_training, num_rows=protocol.num_test_rows
    )
    inputs = without_trained_rows(inputs)
    assessment = assess(inputs, protocol=protocol)
    result, rule, alpha = assessment.main, assessment.rule, assessment.alpha
    main, outcome = result.comparison, OUTCOME_OF_RULE[rule]
    power = power_of(inputs, assessment=assessment, protocol=protocol)
    replacement = assessment.replacement if outcome is Outcome.STAY else None
    selected = winner_of(outcome, replacement=replacement.role if replacement else None)
    costs = contender_costs(assessment, selected=selected, training=inputs.training, protocol=protocol)
    explained = ExplanationInputs(assessment, protocol, power, inputs.leaks, replacement)
    return Verdict(
        outcome=outcome,
        rule=rule,
        reasons=(
            *explain(rule, explained),
            *(cheapest_sentences(costs, protocol=protocol) if rule != 2 else ()),
            *further_access(inputs, alpha=alpha, protocol_alpha=protocol.alpha),
            *of_training,
        ),
        metric=protocol.metric,
        n=main.counts.n,
        alpha=alpha,
        protocol_alpha=protocol.alpha,
        access_number=inputs.access_number,
        minimum_gain=protocol.minimum_gain,
        non_inferiority_margin=protocol.non_inferiority_margin,
        expected_gain=protocol.expected_gain,
        regulated=protocol.regulated,
        incumbent_kind=inputs.incumbent.clean.model,
        candidate_kind=inputs.candidate.clean.model,
        incumbent_score=main.other_score,
        candidate_score=main.candidate_score,
        gain=main.gain,
        interval=main.interval,
        level=result.level,
        p_value=main.p_value,
        p_holm=result.p_holm,
        p_exact=main.p_exact,
        only_incumbent_right=main.counts.only_other_right,
        only_candidate_right=main.counts.only_candidate_right,
        second_metric=_second_metric(inputs, metric=SECOND_METRIC[protocol.metric], alpha=alpha),
        minimum_detectable_effect=power.minimum_detectable_effect,
        power_at_expected_gain=power.fine_tune,
        power_limited_by=power.blocked_by,
        hybrid_power=power.hybrid,
        rows_needed=power.needed.rows,
        rows_needed_for_minimum_gain=power.needed_for_minimum.rows,
        proven=result.proven,
        posterior=posterior_of(
            inputs.candidate.clean,
            other=inputs.incumbent.clean,
            metric=protocol.metric,
            minimum_gain=protocol.minimum_gain,
        ),
        gates=assessment.gates,
        cost_ratio=assessment.cost_ratio,
        cost_unit=assessment.cost_unit,
        costs=costs,
        hybrid=assessment.hybrid,
        contenders=assessment.contenders,
        replacement=replacement.role if replacement else None,
        accepted_loss=_accepted_loss(assessment, inputs, replaced=replacement is not None),
    )


def _accepted_loss(assessment: Assessment, inputs: VerdictInputs, *, replaced: bool) -> float:
    """Return the losses accepted for lower cost since the last proven champion, if the winner is served."""
    hybrid = assessment.hybrid
    if assessment.rule == 7:
        return assessment.facts.accepted_loss
    if assessment.rule == 3 and hybrid is not None and not hybrid.proven:
        return inputs.accepted_loss + max(0.0, -hybrid.gain)
    is_proven = replaced or assessment.rule in (3, 4)
    return 0.0 if is_proven else inputs.accepted_loss


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
