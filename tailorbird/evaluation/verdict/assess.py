"""Evaluate what the outcome table reads: the family's comparisons, the gates, the costs and the hybrid (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.gates.cost import ServingCosts, TrainingUsage
from tailorbird.evaluation.gates.prices import CostUnit, Ratio
from tailorbird.evaluation.hybrid import (
    FrozenHybrid,
    PartUsage,
    apply_routing,
    hybrid_usage,
    routed_to_second,
    share_to_second,
)
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.family import FamilyComparison, compare_family, is_proven
from tailorbird.evaluation.verdict.gates import CostComparison, evaluate_gates, states_of
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.parts import ContenderVerdict, Difference, HybridPart, HybridVerdict
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import CHEAPER_RATIO, Facts, gates_pass, select_rule


@dataclass(frozen=True)
class Assessment:
    """The rule that decides, with the facts and the comparisons behind it."""

    alpha: float  # level of this access to the test rows, over all contenders
    rule: int
    facts: Facts
    main: FamilyComparison  # the candidate against the incumbent
    gates: tuple[Gate, ...]
    cost_ratio: Ratio | None
    cost_unit: CostUnit | None
    hybrid: HybridVerdict | None
    hybrid_lowest: float | None  # lowest gain that its tests of non-inferiority do not exclude
    contenders: tuple[ContenderVerdict, ...]
    tables: Mapping[str, Predictions]  # test predictions by role, of the incumbent and the family
    costs: ServingCosts | None  # measured resources by role, with the hybrid's; None if not measured

    @property
    def replacement(self) -> ContenderVerdict | None:
        """The contender that replaces the incumbent if the candidate does not: the highest gain of those eligible."""
        eligible = [contender for contender in self.contenders if contender.eligible]
        return max(eligible, key=lambda contender: contender.gain, default=None)


def assess(inputs: VerdictInputs, *, protocol: TestProtocol) -> Assessment:
    """Return the rule that decides, from the aligned predictions of all models.

    Gates have the level of the protocol, because they only prevent a change of model; everything else has the level of
    the access to the test rows.
    """
    tests = _tests(inputs, protocol=protocol)
    hybrid = hybrid_predictions(inputs, protocol=protocol)
    members = {"candidate": inputs.candidate, **({"hybrid": hybrid} if hybrid else {}), **inputs.contenders}
    tables = {role: model.clean for role, model in members.items()}
    family = compare_family(tables, incumbent=inputs.incumbent.clean, protocol=tests)
    costs = CostComparison(_costs(inputs), protocol.cost, tests.alpha)
    contenders = tuple(
        _contender(role, inputs, result=family[role], protocol=protocol, costs=costs) for role in inputs.contenders
    )
    better = [inputs.contenders[contender.role].clean for contender in contenders if contender.eligible]
    of_hybrid = lowest = None
    if hybrid is not None:
        of_hybrid, lowest = _hybrid(hybrid, inputs, result=family["hybrid"], protocol=protocol, costs=costs)
    main, gates = family["candidate"], evaluate_gates(inputs, protocol=protocol)
    above_hybrid = better
    if inputs.hybrid is not None and "candidate" not in inputs.hybrid.parts and main.proven:
        passes = gates_pass(states_of(gates), regulated=protocol.regulated)
        above_hybrid = [*better, tables["candidate"]] if passes else better
    ratio = costs.ratio()
    rivals = [(rival.against_candidate, rival.candidate_cost) for rival in (*contenders, of_hybrid) if rival]
    # A rival that is proven worse than the candidate need not be more expensive.
    ratios = [ratio, *(cost for difference, cost in rivals if difference.interval[1] >= 0)]
    facts = Facts(
        leaks=bool(inputs.leaks),
        proven=main.proven,
        low=main.comparison.interval[0],
        cautious_low=main.comparison.cautious_low,
        high=main.comparison.interval[1],
        minimum_gain=protocol.minimum_gain,
        margin=protocol.non_inferiority_margin,
        regulated=protocol.regulated,
        gates=states_of(gates),
        hybrid_holds=of_hybrid is not None
        and of_hybrid.holds
        and not _surpassed(tables["hybrid"], better=above_hybrid, protocol=tests),
        hybrid_gates=states_of(of_hybrid.gates) if of_hybrid else {},
        cheaper=all(cost is not None and cost[2] < CHEAPER_RATIO for cost in ratios),
        accepted_loss=inputs.accepted_loss + max(0.0, -main.comparison.gain),
        other_proven=bool(better),
        surpassed=_surpassed(tables["candidate"], better=better, protocol=tests),
    )
    return Assessment(
        alpha=tests.alpha,
        rule=select_rule(facts),
        facts=facts,
        main=main,
        gates=gates,
        cost_ratio=ratio,
        cost_unit=costs.unit,
        hybrid=of_hybrid,
        hybrid_lowest=lowest,
        contenders=contenders,
        tables={"incumbent": inputs.incumbent.clean, **tables},
        costs=costs.serving,
    )


def _tests(inputs: VerdictInputs, *, protocol: TestProtocol) -> TestProtocol:
    """Return the protocol with the level of this access to the test rows."""
    return protocol.model_copy(update={"alpha": protocol.alpha * inputs.alpha_share})


def hybrid_predictions(inputs: VerdictInputs, *, protocol: TestProtocol) -> ModelPredictions | None:
    """Return the hybrid's predictions, or None if no hybrid was frozen."""
    frozen = inputs.hybrid
    if frozen is None or protocol.hybrid is None:
        return None
    first, second = (inputs.models[role] for role in frozen.parts)
    return apply_routing(frozen.routing, first=first, second=second)


def _costs(inputs: VerdictInputs) -> ServingCosts | None:
    """Return the costs by role. If those of the hybrid are not given, every row has the same cost in one model."""
    frozen = inputs.hybrid
    if inputs.costs is None or frozen is None or "hybrid" in inputs.costs:
        return inputs.costs
    first, second = (PartUsage(inputs.costs[role]) for role in frozen.parts)
    routed = routed_to_second(frozen.routing, inputs.models[frozen.first].clean)
    return {**inputs.costs, "hybrid": hybrid_usage(frozen.routing, routed=routed, first=first, second=second)}


def _share_to_second(frozen: FrozenHybrid, inputs: VerdictInputs) -> float:
    return share_to_second(frozen.routing, inputs.models[frozen.first].clean)


def _pair(role: str, costs: ServingCosts | None) -> ServingCosts | None:
    """Return the costs of the incumbent and of the model in a role, as those of a candidate."""
    return None if costs is None else {"incumbent": costs["incumbent"], "candidate": costs[role]}


def _contender(
    role: str,
    inputs: VerdictInputs,
    *,
    result: FamilyComparison,
    protocol: TestProtocol,
    costs: CostComparison,
) -> ContenderVerdict:
    model, comparison, tests = inputs.contenders[role], result.comparison, _tests(inputs, protocol=protocol)
    gates: tuple[Gate, ...] = ()
    if result.proven:  # only a proven contender can replace the incumbent
        pair = _pair(role, costs.serving)
        as_candidate = replace(inputs, candidate=model, costs=pair, training=TrainingUsage())
        gates = evaluate_gates(as_candidate, protocol=protocol)
    return ContenderVerdict(
        role=role,
        kind=model.clean.model,
        score=comparison.candidate_score,
        gain=comparison.gain,
        interval=comparison.interval,
        level=result.level,
        p_value=comparison.p_value,
        p_holm=result.p_holm,
        proven=result.proven,
        eligible=result.proven and gates_pass(states_of(gates), regulated=protocol.regulated),
        gates=gates,
        against_candidate=_difference(model.clean, other=inputs.candidate.clean, protocol=tests),
        candidate_cost=costs.ratio(incumbent=role),
    )


def _hybrid(
    hybrid: ModelPredictions,
    inputs: VerdictInputs,
    *,
    result: FamilyComparison,
    protocol: TestProtocol,
    costs: CostComparison,
) -> tuple[HybridVerdict, float]:
    frozen = inputs.hybrid
    assert frozen is not None  # the predictions of a hybrid need one
    comparison, tests = result.comparison, _tests(inputs, protocol=protocol)
    first, second = (_part(role, hybrid.clean, inputs=inputs, protocol=tests) for role in frozen.parts)
    training = inputs.training if "candidate" in frozen.parts else TrainingUsage()
    as_candidate = replace(inputs, candidate=hybrid, costs=_pair("hybrid", costs.serving), training=training)
    verdict = HybridVerdict(
        routing=frozen.routing,
        first=first,
        second=second,
        share_to_second=_share_to_second(frozen, inputs),
        validation=frozen.validation,
        validation_share_to_second=frozen.share_to_second,
        score=comparison.candidate_score,
        gain=comparison.gain,
        interval=comparison.interval,
        level=result.level,
        p_value=comparison.p_value,
        p_holm=result.p_holm,
        proven=result.proven,
        gates=evaluate_gates(as_candidate, protocol=protocol),
        against_candidate=_difference(hybrid.clean, other=inputs.candidate.clean, protocol=tests),
        candidate_cost=costs.ratio(incumbent="hybrid"),
        best_part=frozen.best_part,
        cost_ratio=costs.ratio("hybrid", incumbent=frozen.best_part),
        holds=False,
    )
    lowest = _lowest_of_hybrid(verdict, hybrid, inputs=inputs, protocol=tests)
    not_inferior = lowest > -protocol.non_inferiority_margin
    better = result.proven and all(part.hybrid_gain.proven for part in verdict.parts if part.role != "incumbent")
    cheaper = verdict.cost_ratio is not None and verdict.cost_ratio[2] < 1
    return verdict.model_copy(update={"holds": not_inferior and (better or cheaper)}), lowest


def _lowest_of_hybrid(
    verdict: HybridVerdict, hybrid: ModelPredictions, *, inputs: VerdictInputs, protocol: TestProtocol
) -> float:
    """Return the lowest gain over the incumbent and each part that the tests of non-inferiority do not exclude."""
    if inputs.incumbent.clean.clusters is None:
        return verdict.lowest
    others = [
        inputs.models[role].clean for role in dict.fromkeys(("incumbent", verdict.first.role, verdict.second.role))
    ]
    compared = [compare(hybrid.clean, other=other, metric=protocol.metric, alpha=protocol.alpha) for other in others]
    return min(verdict.lowest, *(comparison.lowest for comparison in compared))


def _part(role: str, hybrid: Predictions, *, inputs: VerdictInputs, protocol: TestProtocol) -> HybridPart:
    table = inputs.models[role].clean
    gain = _difference(hybrid, other=table, protocol=protocol)
    return HybridPart(role=role, kind=table.model, score=score_table(protocol.metric, table), hybrid_gain=gain)


def _difference(model: Predictions, *, other: Predictions, protocol: TestProtocol) -> Difference:
    result = compare(model, other=other, metric=protocol.metric, alpha=protocol.alpha)
    proven = is_proven(result, p_value=result.p_value, protocol=protocol)
    return Difference(gain=result.gain, interval=result.interval, p_value=result.p_value, proven=proven)


def _surpassed(model: Predictions, *, better: list[Predictions], protocol: TestProtocol) -> bool:
    """Return True if a contender that may replace the incumbent is better than the model as well."""
    return any(
        difference.p_value < protocol.alpha and difference.interval[0] > 0
        for difference in (_difference(other, other=model, protocol=protocol) for other in better)
    )
