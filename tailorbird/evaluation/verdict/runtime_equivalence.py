"""Whether a judged model may be served by another engine: the same weights, cheaper and as good, as rule 7 has it."""

from dataclasses import asdict, dataclass
from typing import Any

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.explain import failed_gates, open_gates
from tailorbird.evaluation.verdict.formatting import points
from tailorbird.evaluation.verdict.gates import evaluate_gates, measured_cost_ratio
from tailorbird.evaluation.verdict.inputs import VerdictInputs, require_same_rows
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import CHEAPER_RATIO, NOT_MUCH_WORSE, Facts, cheaper_and_not_worse

ENGINE_EVIDENCE = "engine_evidence.json"
"""Where a version that was exported for another engine keeps what it was accepted by."""


@dataclass(frozen=True)
class Equivalence:
    """Whether the engine is accepted, with everything that led to it; differences are exported minus judged."""

    accepted: bool
    reasons: tuple[str, ...]
    metric: str
    n: int
    alpha: float
    judged_score: float
    exported_score: float
    gain: float
    interval: tuple[float, float]
    """Two-sided at level 1 - alpha."""
    differing: int
    """Rows with another output, whoever was right."""
    gates: tuple[Gate, ...]
    cost_ratio: tuple[float, float, float]
    """CPU-seconds a row, exported over judged: estimate and 1 - alpha interval."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        value = asdict(self) | {"gates": [gate.to_dict() for gate in self.gates]}
        return value | {name: list(value[name]) for name in ("reasons", "interval", "cost_ratio")}


def evaluate_equivalence(case: VerdictInputs, *, question: TestProtocol) -> Equivalence:
    """By the conditions of rule 7, the judged version in the incumbent's place and what was exported of it in the
    candidate's. It is no outcome and no look at test: nothing is chosen among weights.

    Raises VerdictRefused as `verdict.decide`, ValueError where a measurement or table that it takes is missing.
    """
    require_same_rows(case, question=question)
    ratio = measured_cost_ratio(case.cpu, alpha=question.alpha)
    if ratio is None:
        raise ValueError("the cost of both engines was not measured; measure it in alternating rounds")
    found = compare(case.candidate.clean, other=case.incumbent.clean, metric=question.metric, alpha=question.alpha)
    gates = evaluate_gates(case.candidate, incumbent=case.incumbent, case=case, question=question)
    facts = Facts(
        leaks=False,
        proven=False,
        low=found.interval[0],
        high=found.interval[1],
        minimum_gain=question.minimum_gain,
        regulated=question.regulated,
        gates={gate.name: gate.state for gate in gates},
        cheaper=ratio[2] < CHEAPER_RATIO,
    )
    pairs = zip(case.candidate.clean.outputs, case.incumbent.clean.outputs, strict=True)
    return Equivalence(
        accepted=cheaper_and_not_worse(facts),
        reasons=_reasons(facts, ratio=ratio, gates=gates),
        metric=question.metric,
        n=found.counts.n,
        alpha=question.alpha,
        judged_score=found.other_score,
        exported_score=found.candidate_score,
        gain=found.gain,
        interval=found.interval,
        differing=sum(ours != theirs for ours, theirs in pairs),
        gates=gates,
        cost_ratio=ratio,
    )


def _reasons(facts: Facts, *, ratio: tuple[float, float, float], gates: tuple[Gate, ...]) -> tuple[str, ...]:
    takes = f"it takes {ratio[0]:.2f} of the judged engine's CPU-seconds a row (interval to {ratio[2]:.2f})"
    begins = f"the interval of the difference begins at {points(facts.low)} points"
    limit = points(NOT_MUCH_WORSE)
    return (
        takes if facts.cheaper else f"{takes}, which is not shown to be under {CHEAPER_RATIO}",
        f"{begins}, above {limit}" if facts.low > NOT_MUCH_WORSE else f"{begins}, not above {limit}",
        *failed_gates(gates),
        *open_gates(gates, regulated=facts.regulated),
    )
