"""Decide whether a champion's verdict still holds on audited rows (a pure function).

All re-evaluations of a champion are one confidence sequence over all audited rows, so their number
does not increase the probability that a good champion is withdrawn. The rows of a
request are dependent and count as one value, their mean.
"""

from tailorbird.config.metrics import METRICS, row_metric
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.prices import compare_costs
from tailorbird.evaluation.statistics.confidence_sequence import confidence_sequence
from tailorbird.evaluation.statistics.documents import documents_of
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.explain import failed_gates, open_gates
from tailorbird.evaluation.verdict.formatting import points, size
from tailorbird.evaluation.verdict.gates import evaluate_gates
from tailorbird.evaluation.verdict.inputs import VerdictInputs, require_same_rows
from tailorbird.evaluation.verdict.parts import VerdictPart
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import CHEAPER_RATIO


class ReevaluationVerdict(VerdictPart):
    """The result of a re-evaluation; gains are the champion minus the version that a rollback
    restores."""

    holds: bool | None
    """True if the verdict is renewed, False if it is withdrawn, None if the rows do not decide
    it."""
    reasons: tuple[str, ...]
    metric: str
    """Metric of the scores and the gain."""
    compared: str
    """Metric of the interval: accuracy under macro-F1, which is not a mean over rows."""
    n: int
    """Number of audited rows of all re-evaluations of the champion."""
    num_units: int
    """Number of requests. The rows of a request count as one."""
    alpha: float
    minimum_gain: float
    champion_score: float
    previous_score: float
    gain: float
    interval: tuple[float, float]
    """Confidence sequence at level 1 - alpha, valid at all re-evaluations at once."""
    gates: tuple[Gate, ...]

    def numbers(self) -> str:
        """Return the gain in points with its interval and the number of rows."""
        low, high = self.interval
        if self.compared == self.metric:
            name = ""
        else:
            name = f" of {METRICS[self.compared].title}"
        interval = (
            f"{100 * (1 - self.alpha):.4g}% confidence sequence{name} {points(low)} to "
            f"{points(high)}"
        )
        return f"{points(self.gain)} points ({interval}, n = {self.n:,})"


def decide_reevaluation(
    inputs: VerdictInputs, *, protocol: TestProtocol, number: int
) -> ReevaluationVerdict:
    """Return whether the champion (the candidate of `inputs`) keeps its verdict against the version
    before it.

    `inputs` have all audited rows; `number` counts the re-evaluations of the champion, from 1. The
    verdict is renewed if the gain is proven to be above 0 and measured as at least the minimum
    gain, and no gate stops it. It is withdrawn if a gate fails, or if the minimum gain is out of
    reach and the gain is not proven to be above 0. A cheaper champion is also renewed if it is
    non-inferior, and is withdrawn only if it is proven to lose the margin. One of unknown cost may
    have been chosen for its cost, and is not withdrawn if it is non-inferior. Raises VerdictRefused
    and ValueError as `reach_verdict` does.
    """
    require_same_rows(inputs, protocol=protocol)
    champion = inputs.candidate.clean
    previous = inputs.incumbent.clean
    compared = row_metric(protocol.metric)
    units = documents_of(champion.clusters, num_rows=len(champion))
    champion_means, previous_means = (
        units.sums(table.per_row(compared)) / units.sizes for table in (champion, previous)
    )
    interval = confidence_sequence(champion_means - previous_means, alpha=protocol.alpha)
    scores = [float(values.mean()) for values in (champion_means, previous_means)]
    if compared != protocol.metric:
        scores = [score_table(protocol.metric, table) for table in (champion, previous)]
    gain = scores[0] - scores[1]
    gate_protocol = _protocol_of_gates(protocol, number=number)
    cost = compare_costs(
        inputs.costs, terms=protocol.cost, alpha=gate_protocol.alpha, training=inputs.training
    )
    gates = evaluate_gates(
        inputs.candidate, incumbent=inputs.incumbent, protocol=gate_protocol, cost=cost
    )
    ratio = compare_costs(inputs.costs, terms=protocol.cost, alpha=protocol.alpha).ratio
    is_cheaper = None if ratio is None else ratio[2] < CHEAPER_RATIO
    holds, why = _decide(
        gain, interval=interval, gates=gates, protocol=protocol, is_cheaper=is_cheaper
    )
    return ReevaluationVerdict(
        holds=holds,
        reasons=why,
        metric=protocol.metric,
        compared=compared,
        n=len(champion),
        num_units=len(champion_means),
        alpha=protocol.alpha,
        minimum_gain=protocol.minimum_gain,
        champion_score=scores[0],
        previous_score=scores[1],
        gain=gain,
        interval=interval,
        gates=gates,
    )


def _decide(
    gain: float,
    *,
    interval: tuple[float, float],
    gates: tuple[Gate, ...],
    protocol: TestProtocol,
    is_cheaper: bool | None,
) -> tuple[bool | None, tuple[str, ...]]:
    """Return True, False or None as `ReevaluationVerdict.holds`, and the reasons.

    `is_cheaper` is None if the costs of the two versions cannot be compared.
    """
    (low, high) = interval
    minimum = size(protocol.minimum_gain)
    reaches = gain >= protocol.minimum_gain
    # The interval of accuracy cannot exclude a gain of a mean over classes, so there the champion
    # must be proven worse.
    if METRICS[protocol.metric].is_over_classes:
        limit = 0.0
    else:
        limit = protocol.minimum_gain
    ends = f"the interval from {points(low)} to {points(high)} points"
    unassessed = open_gates(gates, regulated=protocol.regulated)
    if any(gate.state is State.FAILS for gate in gates):
        return False, failed_gates(gates)
    if low > 0 and reaches and not (protocol.regulated and unassessed):
        return True, (
            f"a gain above 0 is proven, and the estimate reaches the minimum gain of {minimum}",
            *unassessed,
        )
    if low > 0 and not is_cheaper:
        small = f"{ends} is above 0, but the measured gain is below the minimum gain of {minimum}"
        return None, unassessed if reaches else (
            f"{small}: a rollback would make the service worse",
        )
    if is_cheaper:
        return _decide_cheaper(interval, protocol=protocol, ends=ends, unassessed=unassessed)
    if high >= limit or reaches:
        return None, (
            f"{ends} does not decide between no gain and the minimum gain of {minimum}",
            *unassessed,
        )
    if is_cheaper is None and low > -protocol.non_inferiority_margin:
        limit_text = f"above {points(-protocol.non_inferiority_margin)} points"
        return None, (
            f"{ends} is {limit_text}, and the champion may have been chosen for its cost, which "
            "is not known",
        )
    excluded = f"a gain of {size(limit)}" if limit else "a gain"
    return False, (f"{ends} excludes {excluded}",)


def _decide_cheaper(
    interval: tuple[float, float], *, protocol: TestProtocol, ends: str, unassessed: tuple[str, ...]
) -> tuple[bool | None, tuple[str, ...]]:
    """Return the result for a champion that is cheaper, if it is non-inferior."""
    (low, high) = interval
    least = -protocol.non_inferiority_margin
    if low > least:
        kept = f"{ends} is above {points(least)} points, and the champion is cheaper"
        # The interval of accuracy does not show that a mean over classes is non-inferior.
        is_open = METRICS[protocol.metric].is_over_classes or (protocol.regulated and unassessed)
        return None if is_open else True, (kept, *unassessed)
    if high < least:
        return False, (
            f"{ends} is below {points(least)} points, which its lower cost does not outweigh",
        )
    return None, (
        f"{ends} does not decide whether the champion, which is cheaper, loses {size(-least)}",
        *unassessed,
    )


def _protocol_of_gates(protocol: TestProtocol, *, number: int) -> TestProtocol:
    """Return the test protocol for the gates of the champion's re-evaluation with this number.

    Gates have no confidence sequence. Their level is alpha / (number (number + 1)), which sums to
    alpha over all re-evaluations. The loss of a group must be proven: a loss that is only likely,
    which blocks a candidate in a run, would withdraw too many champions that harm no group.
    """
    alpha = protocol.alpha / (number * (number + 1))
    return protocol.model_copy(update={"alpha": alpha, "likely_harm": 0.0})
