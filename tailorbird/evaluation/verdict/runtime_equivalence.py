"""Test whether another engine may serve an evaluated model: same weights, cheaper and
non-inferior."""

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.gates.prices import compare_costs
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.explain import failed_gates, open_gates
from tailorbird.evaluation.verdict.formatting import points
from tailorbird.evaluation.verdict.gates import evaluate_gates, gates_pass
from tailorbird.evaluation.verdict.inputs import VerdictInputs, require_same_rows
from tailorbird.evaluation.verdict.parts import VerdictPart
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import CHEAPER_RATIO


class Equivalence(VerdictPart):
    """The decision on an engine with its evidence; differences are exported minus evaluated."""

    accepted: bool
    reasons: tuple[str, ...]
    metric: str
    n: int
    alpha: float
    gain: float
    interval: tuple[float, float]
    """Two-sided at level 1 - alpha."""
    num_different: int
    """Rows for which the two engines have different outputs."""
    gates: tuple[Gate, ...]
    cost_ratio: tuple[float, float, float]
    """CPU-seconds per row, exported divided by evaluated: estimate and 1 - alpha interval."""


def evaluate_equivalence(inputs: VerdictInputs, *, protocol: TestProtocol) -> Equivalence:
    """Test whether the export (the candidate of `inputs`) is cheaper than and non-inferior to the
    evaluated version.

    The costs are compared in CPU-seconds, also if the recipe has prices: both engines serve the
    same weights on the same replicas, and fewer CPU-seconds let a replica answer more requests. The
    comparison does not count as a look at the test set, because it does not select weights. Raises
    VerdictRefused under the same conditions as `reach_verdict`, and ValueError if a measurement or
    table is missing.
    """
    require_same_rows(inputs, protocol=protocol)
    if inputs.costs is None:
        raise ValueError(
            "the cost of the two engines was not measured; measure it in alternating rounds"
        )
    ratio = compare_costs(inputs.costs, terms=None, alpha=protocol.alpha).ratio
    assert ratio is not None, "both engines were measured on the same device"
    exported = inputs.candidate.clean
    evaluated = inputs.incumbent.clean
    comparison = compare(exported, other=evaluated, metric=protocol.metric, alpha=protocol.alpha)
    priced = compare_costs(inputs.costs, terms=protocol.cost, alpha=protocol.alpha)
    gates = evaluate_gates(
        inputs.candidate, incumbent=inputs.incumbent, protocol=protocol, cost=priced
    )
    is_cheaper = ratio[2] < CHEAPER_RATIO
    is_non_inferior = comparison.lowest > -protocol.non_inferiority_margin
    limit = points(-protocol.non_inferiority_margin)
    cost = (
        f"the exported model uses {ratio[0]:.2f} times the evaluated engine's CPU-seconds per row "
        f"(the interval ends at {ratio[2]:.2f}; it must end below {CHEAPER_RATIO})"
    )
    gain = (
        f"the interval of the difference starts at {points(comparison.lowest)} points (it must "
        f"start above {limit})"
    )
    return Equivalence(
        accepted=is_cheaper and is_non_inferior and gates_pass(gates, regulated=protocol.regulated),
        reasons=(
            cost,
            gain,
            *failed_gates(gates),
            *open_gates(gates, regulated=protocol.regulated),
        ),
        metric=protocol.metric,
        n=comparison.counts.n,
        alpha=protocol.alpha,
        gain=comparison.gain,
        interval=comparison.interval,
        num_different=sum(a != b for a, b in zip(exported.outputs, evaluated.outputs, strict=True)),
        gates=gates,
        cost_ratio=ratio,
    )
