"""Evaluate a protocol's gates from the predictions of the candidate and the incumbent."""

from dataclasses import dataclass

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import Tables, counterfactual_gate, robustness_gate
from tailorbird.evaluation.gates.calibration import calibration_gate
from tailorbird.evaluation.gates.cost import ServingCosts, cost_pair
from tailorbird.evaluation.gates.net_benefit import cost_gate
from tailorbird.evaluation.gates.prices import CostTerms, CostUnit, Ratio, cost_ratio, cost_unit
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.gates.suites import AnsweredSuite, suites_gate
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX, VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol


def evaluate_gates(inputs: VerdictInputs, *, protocol: TestProtocol) -> tuple[Gate, ...]:
    """Return the gates of the recipe, in the order calibration, groups, counterfactual, robustness, suites, cost."""
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
        gates.append(calibration_gate(candidate, limits=limits.calibration, alpha=alpha))
    if limits.groups is not None:
        gates.append(
            groups_gate(candidate, incumbent=incumbent, limits=limits.groups, alpha=alpha, metric=protocol.metric)
        )
    if limits.counterfactual is not None:
        gates.append(counterfactual_gate(**changed("counterfactual"), limits=limits.counterfactual, alpha=alpha))
    if limits.robustness is not None:
        gates.append(robustness_gate(**changed("noise"), limits=limits.robustness, alpha=alpha))
    if limits.suites is not None:
        answered = {
            name: AnsweredSuite(
                config, *(model.changed[f"{SUITE_PREFIX}{name}"] for model in (inputs.candidate, inputs.incumbent))
            )
            for name, config in limits.suites.items()
            if name in protocol.suites
        }
        omitted = [name for name in limits.suites if name not in answered]
        gates.append(suites_gate(answered, alpha=alpha, omitted=omitted))
    if protocol.cost is not None and inputs.costs is None:
        gates.append(Gate("cost", State.NOT_ASSESSABLE, (), "the serving cost is not measured"))
    elif protocol.cost is not None and inputs.costs is not None:
        # The recipe prices a correct answer, so the gain is counted in correct answers, also under macro-F1.
        metric = "accuracy" if protocol.metric == "macro_f1" else protocol.metric
        main = compare(candidate, other=incumbent, metric=metric, alpha=alpha)
        pair = cost_pair(inputs.costs)
        gates.append(cost_gate(main, terms=protocol.cost, pair=pair, training=inputs.training, alpha=alpha))
    return tuple(gates)


def states_of(gates: tuple[Gate, ...]) -> dict[str, State]:
    """Return each gate's state by name."""
    return {gate.name: gate.state for gate in gates}


@dataclass(frozen=True)
class CostComparison:
    """The measured costs of all models by role, with what is needed to compare two of them."""

    serving: ServingCosts | None  # None if they were not measured
    terms: CostTerms | None  # prices; None if the recipe has none
    alpha: float

    def ratio(self, candidate: str = "candidate", *, incumbent: str = "incumbent") -> Ratio | None:
        """Return one model's cost of serving divided by another's; None if it is not assessable."""
        if self.serving is None:
            return None
        pair = cost_pair(self.serving, candidate=candidate, incumbent=incumbent)
        return cost_ratio(pair, alpha=self.alpha, terms=self.terms)

    @property
    def unit(self) -> CostUnit | None:
        """What the ratios compare; None if the costs were not measured."""
        return None if self.serving is None else cost_unit(cost_pair(self.serving), terms=self.terms)
