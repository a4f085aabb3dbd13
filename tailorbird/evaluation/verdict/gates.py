"""Evaluate a protocol's gates from the predictions of the candidate and the incumbent."""

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import Tables, counterfactual_gate, robustness_gate
from tailorbird.evaluation.gates.calibration import calibration_gate
from tailorbird.evaluation.gates.cost import CostUnit, ServingCosts, cost_gate, cost_ratio, cost_rounds, net_benefit
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol


def evaluate_gates(inputs: VerdictInputs, *, protocol: TestProtocol) -> tuple[Gate, ...]:
    """Return the gates of the recipe, in the order calibration, groups, counterfactual, robustness, cost."""
    candidate, incumbent = inputs.candidate.clean, inputs.incumbent.clean
    limits, alpha = protocol.gates, protocol.alpha
    gates = []

    def changed(name: str) -> dict[str, Tables]:
        """Return each model's predictions for the clean rows and for a set of changed rows."""
        return {
            "candidate": (candidate, inputs.candidate.changed[name]),
            "incumbent": (incumbent, inputs.incumbent.changed[name]),
        }

    if limits.calibration is not None:
        gates.append(calibration_gate(candidate, incumbent=incumbent, limits=limits.calibration, alpha=alpha))
    if limits.groups is not None:
        gates.append(
            groups_gate(candidate, incumbent=incumbent, limits=limits.groups, alpha=alpha, metric=protocol.metric)
        )
    if limits.counterfactual is not None:
        gates.append(counterfactual_gate(**changed("counterfactual"), limits=limits.counterfactual, alpha=alpha))
    if limits.robustness is not None:
        gates.append(robustness_gate(**changed("noise"), limits=limits.robustness, alpha=alpha))
    if protocol.cost is not None and inputs.costs is None:
        gates.append(Gate("cost", State.NOT_ASSESSABLE, (), "the serving cost is not measured"))
    elif protocol.cost is not None and inputs.costs is not None:
        # The recipe prices a correct answer, so the gain is counted in correct answers, also under macro-F1.
        metric = "accuracy" if protocol.metric == "macro_f1" else protocol.metric
        main = compare(candidate, other=incumbent, metric=metric, alpha=alpha)
        rounds = cost_rounds(inputs.costs)
        benefit = net_benefit(protocol.cost, rounds=rounds, training=inputs.training, alpha=alpha)
        gates.append(cost_gate(main, benefit=benefit, horizon_months=protocol.cost.horizon_months))
    return tuple(gates)


def states_of(gates: tuple[Gate, ...]) -> dict[str, State]:
    """Return each gate's state by name."""
    return {gate.name: gate.state for gate in gates}


def measured_cost_ratio(
    costs: ServingCosts | None, *, alpha: float, candidate: str = "candidate", incumbent: str = "incumbent"
) -> tuple[float, float, float] | None:
    """Return one model's seconds on the serving device divided by another's: estimate, lower and upper end.

    Return None if they were not measured.
    """
    if costs is None:
        return None
    estimate, (low, high) = cost_ratio(cost_rounds(costs, candidate=candidate, incumbent=incumbent), alpha=alpha)
    return estimate, low, high


def cost_unit(costs: ServingCosts | None) -> CostUnit | None:
    """Return the unit of the ratios of `measured_cost_ratio`; None if the costs were not measured."""
    return None if costs is None else costs["incumbent"].unit
