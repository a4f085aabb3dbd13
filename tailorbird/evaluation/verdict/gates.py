"""Evaluate a protocol's gates for a model, compared with the incumbent."""

from tailorbird.config.metrics import row_metric
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import Tables, counterfactual_gate, robustness_gate
from tailorbird.evaluation.gates.calibration import calibration_gate
from tailorbird.evaluation.gates.prices import CostComparison, cost_gate
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.gates.suites import AnsweredSuite, suites_gate
from tailorbird.evaluation.predictions import ModelPredictions
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX
from tailorbird.evaluation.verdict.protocol import TestProtocol


def evaluate_gates(
    model: ModelPredictions,
    *,
    incumbent: ModelPredictions,
    protocol: TestProtocol,
    cost: CostComparison,
) -> tuple[Gate, ...]:
    """Return the gates of the recipe, in the order calibration, groups, counterfactual, robustness,
    suites, cost.

    `cost` is that of the model compared with the incumbent, at the level of the protocol.
    """
    limits = protocol.gates
    alpha = protocol.alpha
    gates = []
    if limits.calibration is not None:
        gates.append(
            calibration_gate(
                model.clean, incumbent=incumbent.clean, limits=limits.calibration, alpha=alpha
            )
        )
    if limits.groups is not None:
        metric = protocol.metric
        gates.append(
            groups_gate(
                model.clean,
                incumbent=incumbent.clean,
                limits=limits.groups,
                alpha=alpha,
                metric=metric,
                likely_harm=protocol.likely_harm,
            )
        )

    def tables(name: str) -> dict[str, Tables]:
        """Return both models' predictions for the clean rows and for a set of changed rows."""
        return {
            "candidate": (model.clean, model.changed[name]),
            "incumbent": (incumbent.clean, incumbent.changed[name]),
        }

    if limits.counterfactual is not None:
        gates.append(
            counterfactual_gate(
                **tables("counterfactual"), limits=limits.counterfactual, alpha=alpha
            )
        )
    if limits.robustness is not None:
        gates.append(robustness_gate(**tables("noise"), limits=limits.robustness, alpha=alpha))
    if limits.suites is not None:
        gates.append(_suites(model, incumbent=incumbent, protocol=protocol))
    if protocol.cost is not None:
        main = compare(
            model.clean, other=incumbent.clean, metric=row_metric(protocol.metric), alpha=alpha
        )
        gates.append(cost_gate(main, cost=cost))
    return tuple(gates)


def _suites(
    model: ModelPredictions, *, incumbent: ModelPredictions, protocol: TestProtocol
) -> Gate:
    answered = {}
    omitted = []
    for name, config in (protocol.gates.suites or {}).items():
        if name in protocol.suites:
            table = f"{SUITE_PREFIX}{name}"
            answered[name] = AnsweredSuite(config, model.changed[table], incumbent.changed[table])
        else:
            omitted.append(name)
    return suites_gate(answered, alpha=protocol.alpha, omitted=omitted)


def incumbent_gates(incumbent: ModelPredictions, *, protocol: TestProtocol) -> tuple[Gate, ...]:
    """Return the gates that limit the incumbent, too: the calibration gate, if it has an absolute
    limit."""
    limits = protocol.gates.calibration
    if limits is None or limits.max_ece is None:
        return ()
    table = incumbent.clean
    return (calibration_gate(table, incumbent=table, limits=limits, alpha=protocol.alpha),)


def gates_pass(gates: tuple[Gate, ...], *, regulated: bool) -> bool:
    """Return True if no gate stops a change; a gate that is not assessable stops it if the recipe
    is regulated."""
    if regulated:
        stopping = {State.FAILS, State.NOT_ASSESSABLE}
    else:
        stopping = {State.FAILS}
    return not any(gate.state in stopping for gate in gates)


def failing(gates: tuple[Gate, ...]) -> tuple[str, ...]:
    """Return the names of the gates that fail."""
    return tuple(gate.name for gate in gates if gate.state is State.FAILS)
