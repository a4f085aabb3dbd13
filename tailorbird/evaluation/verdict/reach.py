"""Reach a verdict from predictions on the same test rows (a pure function)."""

from collections.abc import Mapping
from dataclasses import dataclass

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.gates.prices import cost_unit
from tailorbird.evaluation.hybrid import apply_routing, share_to_second
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.documents import documents_of
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.decide import (
    ANCHOR,
    CANDIDATE,
    HYBRID,
    INCUMBENT,
    Decision,
    Entry,
    alpha_divisor,
    decide,
)
from tailorbird.evaluation.verdict.explain import explain
from tailorbird.evaluation.verdict.gates import evaluate_gates, failing, gates_pass, incumbent_gates
from tailorbird.evaluation.verdict.inputs import (
    VerdictInputs,
    require_same_rows,
    without_trained_rows,
)
from tailorbird.evaluation.verdict.parts import TestedHybrid, TestedModel
from tailorbird.evaluation.verdict.power import PowerInputs, power_of
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import (
    CHEAPER_RATIO,
    CostTable,
    Relate,
    Relation,
    relations,
)
from tailorbird.evaluation.verdict.types import Verdict


@dataclass(frozen=True)
class Compared:
    """The models of a comparison with their gates and costs."""

    tables: Mapping[str, Predictions]  # by role, with those of the hybrid and of the anchor
    entries: tuple[Entry, ...]
    tested: tuple[TestedModel, ...]
    costs: CostTable
    relate: Relate
    known: Mapping[tuple[str, str, int], Relation]  # relations that were computed


def reach_verdict(inputs: VerdictInputs, *, protocol: TestProtocol) -> Verdict:
    """Return whether a fine-tuned model deserves to serve, and which model serves.

    Test rows that a compared model was trained on leave the comparison. Gates have the level of the
    protocol, because they only prevent a change of model; everything else has the level of this
    look at the test rows. Raises VerdictRefused if test rows changed or predictions are misaligned
    or not finite. Raises ValueError if predictions or measurements that the protocol's gates need
    are missing.
    """
    require_same_rows(inputs, protocol=protocol)
    on_all_rows = inputs
    inputs = without_trained_rows(inputs)
    compared = compare_models(inputs, on_all_rows=on_all_rows, protocol=protocol)
    decision = decide(compared.entries, compared.relate, protocol=protocol)
    frozen_hybrid = None
    tested_hybrid = None
    if HYBRID in compared.tables:
        frozen_hybrid = inputs.hybrid
        tested_hybrid = _tested_hybrid(inputs)
    power = None
    if CANDIDATE in compared.tables:
        power_inputs = PowerInputs(
            compared.tables,
            compared.entries,
            compared.costs,
            hybrid=frozen_hybrid,
            is_anchor_missing=inputs.anchor is not None and inputs.anchor.predictions is None,
        )
        power = power_of(power_inputs)
    _compare_for_readers(compared, decision)
    first = inputs.incumbent.clean
    verdict = Verdict(
        outcome=decision.outcome,
        selected=decision.selected,
        sentences=("",),
        metric=protocol.metric,
        n=len(first),
        num_units=documents_of(first.clusters, num_rows=len(first)).num,
        alpha=compared.costs.alpha,
        minimum_gain=protocol.minimum_gain,
        non_inferiority_margin=protocol.non_inferiority_margin,
        expected_gain=protocol.expected_gain,
        models=compared.tested,
        relations=tuple(compared.known.values()),
        blocked_by=decision.blocked_by,
        stopped_by=_stopping_gates(compared, decision, regulated=protocol.regulated),
        replaces_for_cost=_replaces_for_cost(compared, decision),
        power=power,
        headroom=inputs.headroom,
        hybrid=tested_hybrid,
        costs=compared.costs.contenders([model.role for model in compared.tested]),
        cost_unit=cost_unit(inputs.costs, terms=protocol.cost),
        num_trained_rows=len(on_all_rows.incumbent.clean) - len(first),
    )
    return verdict.model_copy(
        update={"sentences": explain(verdict, inputs=inputs, protocol=protocol)}
    )


def compare_models(
    inputs: VerdictInputs, *, on_all_rows: VerdictInputs, protocol: TestProtocol
) -> Compared:
    """Return the models with their gates, and the function that compares two of them."""
    alpha = protocol.alpha * inputs.look.alpha_share
    models = _with_hybrid(inputs, protocol=protocol)
    has_fine_tuned_hybrid = inputs.hybrid is not None and CANDIDATE in inputs.hybrid.parts
    fine_tuned = {CANDIDATE}
    replacing = {*inputs.replacing}
    if has_fine_tuned_hybrid:
        fine_tuned.add(HYBRID)
    else:
        replacing.add(HYBRID)
    training = dict.fromkeys(fine_tuned, inputs.training)
    costs = CostTable(serving=inputs.costs, training=training, protocol=protocol, alpha=alpha)
    on_all = {}
    if on_all_rows is not inputs:
        on_all = _with_hybrid(on_all_rows, protocol=protocol)

    tested = []
    for role, model in models.items():
        if role == INCUMBENT:
            gates = incumbent_gates(model, protocol=protocol)
        else:
            cost = costs.pair(role, INCUMBENT, alpha=protocol.alpha)
            gates = evaluate_gates(model, incumbent=inputs.incumbent, protocol=protocol, cost=cost)
        score_on_all = None
        if role in on_all:
            score_on_all = score_table(protocol.metric, on_all[role].clean)
        metrics = (protocol.metric, METRICS[protocol.metric].second)
        tested.append(
            TestedModel(
                role=role,
                kind=model.clean.model,
                scores={metric: score_table(metric, model.clean) for metric in metrics},
                score_on_all=score_on_all,
                is_fine_tuned=role in fine_tuned,
                may_replace=role in replacing,
                passes=gates_pass(gates, regulated=protocol.regulated),
                is_opponent=not {*failing(gates)}.intersection(protocol.required_gates),
                gates=gates,
            )
        )

    entries = [
        Entry(
            model.role,
            is_fine_tuned=model.is_fine_tuned,
            may_replace=model.may_replace,
            passes=model.passes,
            is_opponent=model.is_opponent,
            fails=bool(failing(model.gates)),
        )
        for model in tested
    ]
    tables = {role: model.clean for role, model in models.items()}
    if inputs.anchor is not None and inputs.anchor.predictions is not None:
        tables[ANCHOR] = inputs.anchor.predictions
    with_anchor, _ = relations(tables, costs=costs)

    def can_replace_for_cost(role: str) -> bool:
        if inputs.anchor is None:
            return True
        return ANCHOR in tables and with_anchor(role, ANCHOR, 1).is_non_inferior

    relate, known = relations(tables, costs=costs, can_replace_for_cost=can_replace_for_cost)
    return Compared(
        tables=tables,
        entries=tuple(entries),
        tested=tuple(tested),
        costs=costs,
        relate=relate,
        known=known,
    )


def _with_hybrid(inputs: VerdictInputs, *, protocol: TestProtocol) -> dict[str, ModelPredictions]:
    """Return the predictions by role: incumbent, candidate, hybrid, others."""
    hybrid = hybrid_predictions(inputs, protocol=protocol)
    models = {role: inputs.models[role] for role in (INCUMBENT, CANDIDATE) if role in inputs.models}
    if hybrid is not None:
        models[HYBRID] = hybrid
    return models | {role: model for role, model in inputs.models.items() if role not in models}


def hybrid_predictions(inputs: VerdictInputs, *, protocol: TestProtocol) -> ModelPredictions | None:
    """Return the hybrid's predictions, or None if no hybrid was frozen."""
    frozen = inputs.hybrid
    if frozen is None or protocol.hybrid is None:
        return None
    return apply_routing(
        frozen.routing, first=inputs.models[frozen.first], second=inputs.models[frozen.second]
    )


def _compare_for_readers(compared: Compared, decision: Decision) -> None:
    """Compare each pair of models that a reader of the verdict asks for; most are compared by the
    decision, too.

    A reader also asks whether a model that costs less than the selected one would do.
    """
    for entry in compared.entries:
        if entry.role != INCUMBENT:
            compared.relate(entry.role, INCUMBENT, alpha_divisor(entry, compared.entries))
        for first in (CANDIDATE, HYBRID, decision.selected):
            is_compared = any((first, entry.role) == key[:2] for key in compared.known)
            if first in compared.tables and entry.role != first and not is_compared:
                compared.relate(first, entry.role, 1)
        is_known = any((entry.role, decision.selected) == key[:2] for key in compared.known)
        if entry.role != decision.selected and not is_known:
            ratio = compared.costs.pair(entry.role, decision.selected).ratio
            if ratio is not None and ratio[2] < CHEAPER_RATIO:
                compared.relate(entry.role, decision.selected, 1)


def _stopping_gates(compared: Compared, decision: Decision, *, regulated: bool) -> tuple[str, ...]:
    """Return the gates that stop a candidate which dominates all its opponents."""
    candidate = next((model for model in compared.tested if model.role == CANDIDATE), None)
    if candidate is None or decision.blocked_by:
        return ()
    return tuple(
        gate.name for gate in candidate.gates if not gates_pass((gate,), regulated=regulated)
    )


def _replaces_for_cost(compared: Compared, decision: Decision) -> bool:
    if decision.selected == INCUMBENT:
        return False
    selected_relations = [
        relation
        for key, relation in compared.known.items()
        if key[:2] == (decision.selected, INCUMBENT)
    ]
    return not any(relation.is_better for relation in selected_relations)


def _tested_hybrid(inputs: VerdictInputs) -> TestedHybrid:
    frozen = inputs.hybrid
    assert frozen is not None  # a tested hybrid was frozen
    return TestedHybrid(
        routing=frozen.routing,
        first=frozen.first,
        second=frozen.second,
        share_to_second=share_to_second(frozen.routing, inputs.models[frozen.first].clean),
        validation=frozen.validation,
        validation_share_to_second=frozen.share_to_second,
    )
