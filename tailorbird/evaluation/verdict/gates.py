"""The gates that a question asks for, each computed from a side's predictions beside the incumbent's."""

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import counterfactual_gate, robustness_gate
from tailorbird.evaluation.gates.calibration import calibration_gate
from tailorbird.evaluation.gates.cost import CpuRounds, cost_gate, cost_ratio
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.predictions import ModelPredictions
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol


def evaluate_gates(
    side: ModelPredictions, *, incumbent: ModelPredictions, case: VerdictInputs, question: TestProtocol
) -> tuple[Gate, ...]:
    """In the order calibration, groups, counterfactual, robustness, cost; those not asked for are left out."""
    asked, alpha, gates = question.gates, question.alpha, []
    metric = "accuracy" if question.has_reference else question.metric  # a class's own F1 in a group would be a share
    if asked.calibration is not None:
        gates.append(calibration_gate(side.clean, incumbent=incumbent.clean, limits=asked.calibration, alpha=alpha))
    if asked.groups is not None:
        gates.append(
            groups_gate(side.clean, incumbent=incumbent.clean, limits=asked.groups, alpha=alpha, metric=metric)
        )
    if asked.counterfactual is not None:
        gates.append(
            counterfactual_gate(
                candidate=(side.clean, side.changed["counterfactual"]),
                incumbent=(incumbent.clean, incumbent.changed["counterfactual"]),
                limits=asked.counterfactual,
                alpha=alpha,
            )
        )
    if asked.robustness is not None:
        gates.append(
            robustness_gate(
                candidate=(side.clean, side.changed["noise"]),
                incumbent=(incumbent.clean, incumbent.changed["noise"]),
                limits=asked.robustness,
                alpha=alpha,
            )
        )
    if question.cost is not None:
        gates.append(
            Gate("cost", State.NOT_ASSESSABLE, (), "what a hybrid incumbent costs to serve is not measured")
            if case.cpu is None
            else cost_gate(
                compare(side.clean, other=incumbent.clean, metric=metric, alpha=alpha),
                terms=question.cost,
                rounds=case.cpu,
                training_cpu_s=case.training_cpu_s,
            )
        )
    return tuple(gates)


def measured_cost_ratio(cpu: CpuRounds | None, *, alpha: float) -> tuple[float, float, float] | None:
    """Candidate's cost over the incumbent's: estimate, lower and upper end; None where it was not measured."""
    if cpu is None:
        return None
    estimate, (low, high) = cost_ratio(cpu, alpha=alpha)
    return estimate, low, high
