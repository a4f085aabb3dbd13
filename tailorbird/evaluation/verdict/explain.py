"""The reasons of a verdict as sentences, none of which claims more than the interval gives."""

from dataclasses import dataclass

from tailorbird.evaluation.gates.base import Bound, Gate, State
from tailorbird.evaluation.statistics.paired import Comparison
from tailorbird.evaluation.statistics.power import RowsNeeded
from tailorbird.evaluation.verdict.formatting import p_text, points, size
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import NOT_MUCH_WORSE, ROUTABLE
from tailorbird.evaluation.verdict.types import HybridVerdict


@dataclass(frozen=True)
class ExplanationInputs:
    """Everything the verdict was decided on."""

    main: Comparison
    reference: Comparison | None
    protocol: TestProtocol
    gates: tuple[Gate, ...]
    needed: RowsNeeded
    hybrid: HybridVerdict | None
    ratio: tuple[float, float, float] | None
    leaks: tuple[str, ...]


def explain(rule: int, inputs: ExplanationInputs) -> tuple[str, ...]:
    """Return the reasons of the rule that decided, most important first, and the units that count if not rows."""
    main, reference, protocol, gates = inputs.main, inputs.reference, inputs.protocol, inputs.gates
    proven = _proven(main, reference=reference, protocol=protocol)
    reasons: tuple[str, ...]
    if rule == 2:
        reasons = tuple(f"leak: {leak}" for leak in inputs.leaks)
    elif rule == 3:
        reasons = (*proven, *open_gates(gates))
    elif rule == 4:
        hybrid = inputs.hybrid
        assert hybrid is not None  # rule 4 holds with one only
        passes = (
            f"the hybrid passes: the candidate answers {hybrid.share_to_candidate:.0%} of the rows, gain "
            f"{points(hybrid.gain)} points (interval from {points(hybrid.interval[0])}, Holm-adjusted "
            f"{p_text(hybrid.p_holm)})"
        )
        reasons = (*proven, *failed_gates(gates), passes)
    elif rule == 5:
        reasons = (*failed_gates(gates), *proven, *_no_hybrid(inputs))
    elif rule == 6:
        reasons = (*open_gates(gates, regulated=True), *proven)
    elif rule == 7:
        reasons = (*_cheaper(inputs), *open_gates(gates))
    elif rule == 8:
        reasons = _insufficient(inputs)
    else:
        reasons = _stay(main, reference=reference, protocol=protocol)
    n, units = main.counts.n, main.num_units
    if units == n:
        return reasons
    shared = f"the {n:,} rows share {units:,} documents or texts, and count as these: rows of one are not independent"
    return *reasons, shared


def _proven(main: Comparison, *, reference: Comparison | None, protocol: TestProtocol) -> tuple[str, ...]:
    minimum, (low, _) = size(protocol.minimum_gain), main.interval
    begins = f"the interval begins at {points(low)}"
    gain = f"a gain of at least {minimum} is proven: {begins}"
    if low < protocol.minimum_gain:
        estimate = f"{points(main.gain)} points, not under the minimum of {minimum}"
        gain = f"a gain above 0 is proven and estimated at {estimate}; {begins}, so a smaller gain is not ruled out"
    if reference is None:
        return (gain,)
    beaten = f"the bag-of-words reference is beaten by {points(reference.gain)} points"
    return gain, f"{beaten} (interval from {points(reference.interval[0])})"


def _insufficient(inputs: ExplanationInputs) -> tuple[str, ...]:
    main, reference, needed, protocol = inputs.main, inputs.reference, inputs.needed, inputs.protocol
    (low, high), n = main.interval, main.counts.n
    minimum, expected = size(protocol.minimum_gain), size(protocol.expected_gain)
    why = f"the interval {points(low)} to {points(high)} points holds both no gain and the minimum gain of {minimum}"
    if needed.rows is None:
        rows = f"rows needed: {needed.reason}"
    elif needed.rows > n:
        alike = "" if main.num_units == n else ", in documents as large as these"
        rows = f"rows needed: about {needed.rows:,}{alike} for 80 % power at a gain of {expected}; this test has {n:,}"
    else:
        rows = (
            f"rows needed: this test's {n:,} rows suffice for 80 % power at a gain of {expected} ({needed.rows:,} do); "
            "a smaller gain may be there, and takes more rows: ask with a smaller expected_gain to see how many"
        )
    reasons = (why, rows, *_disagreement(main, protocol))
    if reference is None or reference.interval[1] >= 0:
        return reasons
    against = f"{points(reference.gain)} points against it, interval to {points(reference.interval[1])}"
    more = "more rows of the same kind will hardly change that"
    return *reasons, f"the bag-of-words reference is better: {against}; {more}"


def _stay(main: Comparison, *, reference: Comparison | None, protocol: TestProtocol) -> tuple[str, ...]:
    high, gain, minimum = main.interval[1], main.gain, size(protocol.minimum_gain)
    reasons = []
    if high < 0:
        reasons.append(f"the candidate is worse: the interval ends at {points(high)} points")
    elif high < protocol.minimum_gain:
        reasons.append(f"a gain of {minimum} is ruled out: the interval ends at {points(high)}")
    elif gain < protocol.minimum_gain:
        reasons.append(f"the gain of {points(gain)} points is under the minimum of {minimum}")
    if reference is not None and reference.interval[0] <= 0:
        against = f"{points(reference.gain)} points against it, interval {' to '.join(map(points, reference.interval))}"
        reasons.append(f"the bag-of-words reference is not beaten: {against}")
    return *reasons, *_disagreement(main, protocol)


def failed_gates(gates: tuple[Gate, ...]) -> tuple[str, ...]:
    """Return a sentence for each bound that fails."""
    return tuple(
        f"the gate {gate.name} fails: {_bound_text(bound, money=gate.name == 'cost')}"
        for gate in gates
        for bound in gate.bounds
        if bound.state is State.FAILS
    )


def open_gates(gates: tuple[Gate, ...], *, regulated: bool = False) -> tuple[str, ...]:
    """Return a sentence for each gate that this test cannot assess: each open bound with the rows it takes."""
    sentences = []
    for gate in gates:
        if gate.state is not State.NOT_ASSESSABLE:
            continue
        unit = "rows of that group" if gate.name == "groups" else "rows"
        seen = [
            _bound_text(bound, money=gate.name == "cost")
            + ("" if bound.rows_needed is None else f", where it takes about {bound.rows_needed:,} {unit}")
            for bound in gate.bounds
            if bound.state is State.NOT_ASSESSABLE
        ]
        end = ", and the recipe is regulated" if regulated else ""
        sentences.append(f"the gate {gate.name} cannot be assessed on these rows: {'; '.join(seen) or gate.note}{end}")
    return tuple(sentences)


def _bound_text(bound: Bound, *, money: bool) -> str:
    scale, unit, form = (1, "", ",.0f") if money else (100, " points", ".2f")
    low, high = (format(scale * end, form) for end in bound.interval)
    estimate, limit = format(scale * bound.estimate, form), format(scale * bound.limit, form)
    return f"{bound.what} {estimate} ({low} to {high}{unit}), limit {limit}, n = {bound.n:,}"


def _no_hybrid(inputs: ExplanationInputs) -> tuple[str, ...]:
    failed, hybrid = {gate.name for gate in inputs.gates if gate.state is State.FAILS}, inputs.hybrid
    if not failed <= ROUTABLE or inputs.protocol.hybrid is None:
        return ()
    if hybrid is None:
        why = "on validation one of the two models would answer everything, or the incumbent is a hybrid itself"
        return (f"there was no hybrid to judge: {why}",)
    if not hybrid.proven:
        return (
            f"the hybrid's gain of {points(hybrid.gain)} points is not proven: interval from "
            f"{points(hybrid.interval[0])}, {p_text(hybrid.p_holm)} by Holm with the candidate's, against "
            f"the bag-of-words reference from {points(hybrid.reference_interval[0])}",
        )
    reasons = (*failed_gates(hybrid.gates), *open_gates(hybrid.gates, regulated=inputs.protocol.regulated))
    return tuple(reason.replace("the gate", "the hybrid's gate", 1) for reason in reasons)


def _cheaper(inputs: ExplanationInputs) -> tuple[str, ...]:
    assert inputs.ratio is not None  # rule 7 holds with a measured cost only
    return (
        f"cost: the candidate takes {inputs.ratio[0]:.2f} of the incumbent's CPU-seconds a row (interval to "
        f"{inputs.ratio[2]:.2f})",
        f"it is not much worse: the interval of its gain begins at {points(inputs.main.interval[0])} points, above "
        f"{points(NOT_MUCH_WORSE)}",
    )


def _disagreement(main: Comparison, protocol: TestProtocol) -> tuple[str, ...]:
    low, high = main.interval
    if (main.p_value < protocol.alpha) == (low > 0 or high < 0):
        return ()
    return (
        f"p and interval disagree: {p_text(main.p_value)} against alpha = {protocol.alpha:g}, interval "
        f"{points(low)} to {points(high)}",
    )
