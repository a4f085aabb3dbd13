"""Test whether another engine may serve an evaluated model: same weights, cheaper and non-inferior (rule 7)."""

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.explain import failed_gates, interval_start, open_gates
from tailorbird.evaluation.verdict.formatting import points
from tailorbird.evaluation.verdict.gates import CostComparison, evaluate_gates, states_of
from tailorbird.evaluation.verdict.inputs import VerdictInputs, require_same_rows
from tailorbird.evaluation.verdict.parts import VerdictPart
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import CHEAPER_RATIO, Facts, cheaper_and_not_inferior


class Equivalence(VerdictPart):
    """The decision on an engine with its evidence; differences are exported minus evaluated."""

    accepted: bool
    reasons: tuple[str, ...]
    metric: str
    n: int
    alpha: float
    evaluated_score: float
    exported_score: float
    gain: float
    interval: tuple[float, float]
    """Two-sided at level 1 - alpha."""
    num_different: int
    """Rows for which the two engines have different outputs."""
    gates: tuple[Gate, ...]
    cost_ratio: tuple[float, float, float]
    """CPU-seconds per row, exported divided by evaluated: estimate and 1 - alpha interval."""


def evaluate_equivalence(inputs: VerdictInputs, *, protocol: TestProtocol) -> Equivalence:
    """Apply the conditions of rule 7 with the evaluated version as incumbent and its export as candidate.

    The costs are compared in CPU-seconds, also if the recipe has prices: both engines serve the same weights on the
    same replicas, and fewer CPU-seconds let a replica answer more requests. The comparison does not count as an access
    to the test set, because it does not select weights. Raises VerdictRefused under the same conditions as `decide`,
    and ValueError if a measurement or table is missing.
    """
    require_same_rows(inputs, protocol=protocol)
    ratio = CostComparison(inputs.costs, terms=None, alpha=protocol.alpha).ratio()
    if ratio is None:
        raise ValueError("the cost of the two engines was not measured; measure it in alternating rounds")
    exported, evaluated = inputs.candidate.clean, inputs.incumbent.clean
    comparison = compare(exported, other=evaluated, metric=protocol.metric, alpha=protocol.alpha)
    gates = evaluate_gates(inputs, protocol=protocol)
    facts = Facts(
        leaks=False,
        proven=False,
        low=comparison.interval[0],
        cautious_low=comparison.cautious_low,
        high=comparison.interval[1],
        minimum_gain=protocol.minimum_gain,
        margin=protocol.non_inferiority_margin,
        regulated=protocol.regulated,
        gates=states_of(gates),
        cheaper=ratio[2] < CHEAPER_RATIO,
    )
    return Equivalence(
        accepted=cheaper_and_not_inferior(facts),
        reasons=_reasons(facts, ratio=ratio, gates=gates),
        metric=protocol.metric,
        n=comparison.counts.n,
        alpha=protocol.alpha,
        evaluated_score=comparison.other_score,
        exported_score=comparison.candidate_score,
        gain=comparison.gain,
        interval=comparison.interval,
        num_different=sum(a != b for a, b in zip(exported.outputs, evaluated.outputs, strict=True)),
        gates=gates,
        cost_ratio=ratio,
    )


def _reasons(facts: Facts, *, ratio: tuple[float, float, float], gates: tuple[Gate, ...]) -> tuple[str, ...]:
    cost = (
        f"the exported model uses {ratio[0]:.2f} times the evaluated engine's CPU-seconds per row (the interval ends "
        f"at {ratio[2]:.2f})"
    )
    difference = interval_start(facts, of="difference")
    limit = f"the limit of {points(-facts.margin)}"
    return (
        cost if facts.cheaper else f"{cost}, which is not proven to be below {CHEAPER_RATIO}",
        f"{difference}, {'above' if facts.not_inferior else 'not above'} {limit}",
        *failed_gates(gates),
        *open_gates(gates, regulated=facts.regulated),
    )
