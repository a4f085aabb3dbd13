"""The reasons of a verdict as sentences; no sentence claims more than the interval supports."""

from dataclasses import dataclass

from tailorbird.config.evaluation import HybridConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State
from tailorbird.evaluation.statistics.documents import few_documents
from tailorbird.evaluation.statistics.paired import Comparison
from tailorbird.evaluation.statistics.power import rows_text
from tailorbird.evaluation.verdict.assess import Assessment
from tailorbird.evaluation.verdict.formatting import cost_basis, listed, p_text, points, size
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.parts import ContenderVerdict, HybridPart
from tailorbird.evaluation.verdict.power import VerdictPower
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import Facts, is_affordable


@dataclass(frozen=True)
class ExplanationInputs:
    """The quantities that determine the verdict."""

    assessment: Assessment
    protocol: TestProtocol
    power: VerdictPower
    leaks: tuple[str, ...]
    replacement: ContenderVerdict | None

    @property
    def main(self) -> Comparison:
        """The comparison of the candidate with the incumbent."""
        return self.assessment.main.comparison


def explain(rule: int, inputs: ExplanationInputs) -> tuple[str, ...]:
    """Return the reasons for the rule that decided, most important first, and the statistical units if not rows."""
    main, protocol, gates = inputs.main, inputs.protocol, inputs.assessment.gates
    proven = _proven(main, protocol=protocol)
    reasons: tuple[str, ...]
    if rule == 2:
        reasons = tuple(f"leak: {leak}" for leak in inputs.leaks)
    elif rule == 3:
        reasons = _hybrid(inputs)
    elif rule == 4:
        reasons = (*proven, *open_gates(gates))
    elif rule == 5:
        reasons = (*failed_gates(gates), *proven)
    elif rule == 6:
        reasons = (*open_gates(gates, regulated=True), *proven)
    elif rule == 7:
        reasons = (*_cheaper(inputs), *open_gates(gates))
    elif rule == 8:
        reasons = (*_insufficient(inputs), *_not_for_cost(inputs))
    else:
        reasons = (*_stay(inputs), *_disagreement(inputs), *_not_for_cost(inputs))
    if inputs.replacement is not None:
        reasons = (*_replacement(inputs.replacement, inputs), *reasons)
    if rule > 4:
        reasons = (*reasons, *_no_hybrid(inputs))
    n, units = main.counts.n, main.num_units
    if units == n:
        return reasons
    if (few := few_documents(units, num_rows=n)) is not None:
        return (few, *reasons)
    clustered = (
        f"the {n:,} test rows come from {units:,} documents or texts; each document or text counts as one unit, "
        "because its rows are not independent"
    )
    return *reasons, clustered


def further_access(inputs: VerdictInputs, *, alpha: float, protocol_alpha: float) -> tuple[str, ...]:
    """Return a sentence if the test rows are in earlier accesses."""
    if inputs.access_number == 1:
        return ()
    return (
        f"access {inputs.access_number} to these rows: alpha {alpha:.2g} instead of {protocol_alpha:g}, because "
        f"{inputs.num_rows_seen:,} different test rows are in earlier accesses; fresh test rows have the full alpha",
    )


def _proven(main: Comparison, *, protocol: TestProtocol) -> tuple[str, ...]:
    minimum, (low, _) = size(protocol.minimum_gain), main.interval
    start = f"the interval starts at {points(low)} points"
    gain = f"a gain of at least {minimum} is proven: {start}"
    if low < protocol.minimum_gain:
        estimate = f"the estimate of {points(main.gain)} points reaches the minimum gain of {minimum}"
        gain = f"a gain above 0 is proven, and {estimate}; {start}, so the true gain may be below the minimum"
    return (gain,)


def _insufficient(inputs: ExplanationInputs) -> tuple[str, ...]:
    main, protocol = inputs.main, inputs.protocol
    low, high = main.interval
    why = (
        f"the interval from {points(low)} to {points(high)} points contains both 0 and the minimum gain of "
        f"{size(protocol.minimum_gain)}"
    )
    return why, *_rows_needed(inputs), *_disagreement(inputs)


def _rows_needed(inputs: ExplanationInputs) -> tuple[str, ...]:
    """Return the power and the rows needed, for the expected gain and for the minimum gain."""
    main, power, protocol = inputs.main, inputs.power, inputs.protocol
    n, expected, minimum = main.counts.n, size(protocol.expected_gain), size(protocol.minimum_gain)
    gain = f"a true gain of {expected} (expected_gain) over the incumbent"
    now = f"{gain} gives FINE_TUNE in {power.fine_tune:.0%} of such tests"
    same_size = "" if main.num_units == n else " (with as many rows per document as now)"
    needed = f"80% of tests need {rows_text(power.needed.rows)}{same_size}"
    for_expected = f"rows needed: {now}; {power.needed.reason if power.needed.rows is None else needed}"
    least = f"{rows_text(power.needed_for_minimum.rows)} are needed{same_size}; this test has {n:,}"
    if protocol.minimum_gain == 0:
        return (f"{for_expected}; this test has {n:,}",)
    return for_expected, f"to detect a true gain of {minimum} (minimum_gain) with 80% power, {least}"


def _stay(inputs: ExplanationInputs) -> tuple[str, ...]:
    main, protocol, facts = inputs.main, inputs.protocol, inputs.assessment.facts
    high, gain, minimum = main.interval[1], main.gain, size(protocol.minimum_gain)
    reasons = []
    if facts.proven:
        better = " and the other contender is better than the candidate" if facts.surpassed else ""
        reasons += [f"the candidate is better than the incumbent, too{better}: {points(gain)} points"]
        reasons += [] if facts.surpassed else open_gates(inputs.assessment.gates, regulated=True)
    elif high < 0:
        reasons.append(f"the candidate is worse than the incumbent: the interval ends at {points(high)} points")
    elif high < protocol.minimum_gain:
        reasons.append(f"a gain of {minimum} is ruled out: the interval ends at {points(high)} points")
    elif gain < protocol.minimum_gain:
        reasons.append(f"the measured gain of {points(gain)} points is below the minimum gain of {minimum}")
    return tuple(reasons)


def failed_gates(gates: tuple[Gate, ...], *, owner: str = "the") -> tuple[str, ...]:
    """Return a sentence for each bound that fails; `owner` begins the sentences (`the hybrid's`)."""
    return tuple(
        f"{owner} {gate.name} gate fails: {_bound_text(bound, money=gate.name == 'cost')})"
        for gate in gates
        for bound in gate.bounds
        if bound.state is State.FAILS
    )


def open_gates(gates: tuple[Gate, ...], *, regulated: bool = False, owner: str = "the") -> tuple[str, ...]:
    """Return a sentence for each gate that is not assessable, with the open bounds and the rows that each needs.

    The groups gate comes first, because it names the groups that are not protected.
    """
    sentences = []
    for gate in sorted(gates, key=lambda gate: gate.name != "groups"):
        if gate.state is not State.NOT_ASSESSABLE:
            continue
        unproven = [bound for bound in gate.bounds if bound.state is State.NOT_ASSESSABLE]
        rule = ", but a regulated recipe requires it to pass" if regulated else ""
        if gate.name == "groups" and unproven:
            names = ", ".join(
                f"{bound.what.removeprefix('change for ')} (n = {bound.n:,}, about {bound.rows_needed:,} needed if "
                "nothing changed)"
                for bound in unproven
            )
            sentences.append(f"{owner} groups gate does not rule out a loss in these groups{rule}: {names}")
            continue
        details = [
            _bound_text(bound, money=gate.name == "cost")
            + (")" if bound.rows_needed is None else f"; about {bound.rows_needed:,} rows are needed)")
            for bound in unproven
        ]
        detail = ", ".join(details) or gate.note
        sentences.append(f"{owner} {gate.name} gate cannot be assessed on these rows{rule}: {detail}")
    return tuple(sentences)


def _bound_text(bound: Bound, *, money: bool) -> str:
    """Return the estimate with its interval, limit and rows in a parenthesis that the caller closes."""
    scale, unit, form = (1, "", ",.0f") if money else (100, " points", ".2f")
    low, high = (format(scale * end, form) for end in bound.interval)
    estimate, limit = format(scale * bound.estimate, form), format(scale * bound.limit, form)
    found = "" if bound.detects is None else f", a loss of {100 * bound.detects:.1f} is found in 80% of tests"
    return f"the {bound.what} is {estimate}{unit} (interval {low} to {high}, limit {limit}, n = {bound.n:,}{found}"


def _hybrid(inputs: ExplanationInputs) -> tuple[str, ...]:
    hybrid, margin = inputs.assessment.hybrid, inputs.protocol.non_inferiority_margin
    assert hybrid is not None  # rule 3 requires a hybrid
    names = ["the incumbent", *(_part_name(part) for part in hybrid.parts if part.role != "incumbent")]
    others = [part.hybrid_gain for part in hybrid.parts if part.role != "incumbent"]
    lows = [points(low) for low in (hybrid.interval[0], *(gain.interval[0] for gain in others))]
    compared = f"{listed(names)}: the intervals of its gains start at {listed(lows)} points"
    lowest = inputs.assessment.hybrid_lowest
    rare = "" if lowest is None or lowest == hybrid.lowest else f", and the lowest one at {_with_rare_losses(lowest)}"
    reasons = [
        f"the hybrid is non-inferior to {compared}{rare}, above the limit of {points(-margin)}"
        if hybrid.lowest <= 0
        else f"the hybrid is better than {compared}"
    ]
    if hybrid.cost_ratio is not None and hybrid.cost_ratio[2] < 1:
        best = next(part for part in hybrid.parts if part.role == hybrid.best_part)
        reasons.append(
            f"to serve, it costs {hybrid.cost_ratio[0]:.2f} times as much as {_part_name(best)}, its better part on "
            f"validation ({cost_basis(inputs.assessment.cost_unit)}; the interval ends at "
            f"{hybrid.cost_ratio[2]:.2f})"
        )
    reasons.append(f"{_part_name(hybrid.second)} answers {hybrid.share_to_second:.0%} of the test rows")
    return *reasons, *open_gates(hybrid.gates, owner="the hybrid's")


def _part_name(part: HybridPart) -> str:
    """Return the role in a sentence, with the kind of a part that is neither incumbent nor candidate."""
    return f"the {part.role}" if part.role in ("incumbent", "candidate") else f"the contender {part.role}"


def why_no_hybrid(config: HybridConfig) -> str:
    """Return why the validation rows gave no hybrid."""
    if config.by == "group":
        return "on validation one model would answer every row, or the incumbent is already a hybrid"
    return "on validation, none scores as high as the best single model"


def _no_hybrid(inputs: ExplanationInputs) -> tuple[str, ...]:
    """Return why the hybrid was not chosen."""
    protocol, hybrid = inputs.protocol, inputs.assessment.hybrid
    if protocol.hybrid is None:
        return ()
    if hybrid is None:
        return (f"no hybrid was evaluated: {why_no_hybrid(protocol.hybrid)}",)
    lowest = inputs.assessment.hybrid_lowest
    if lowest is not None and lowest <= -protocol.non_inferiority_margin:
        start = f"{points(lowest)} points" if lowest == hybrid.lowest else _with_rare_losses(lowest)
        return (
            "the hybrid may be inferior to the incumbent or to one of its parts: the interval of its gain starts at "
            f"{start}, not above the limit of {points(-protocol.non_inferiority_margin)}",
        )
    if not hybrid.holds:
        return (
            "the hybrid is non-inferior, but neither proven to be better than the incumbent and its parts nor to cost "
            f"less than its better part, the {hybrid.best_part}",
        )
    if not inputs.assessment.facts.hybrid_holds:
        return ("another model that is proven better than the incumbent is also better than the hybrid",)
    owner = "the hybrid's"
    return (
        *failed_gates(hybrid.gates, owner=owner),
        *(open_gates(hybrid.gates, regulated=True, owner=owner) if protocol.regulated else ()),
    )


def _replacement(contender: ContenderVerdict, inputs: ExplanationInputs) -> tuple[str, ...]:
    minimum = size(inputs.protocol.minimum_gain)
    size_of_family = len(inputs.assessment.contenders) + 1 + (inputs.assessment.hybrid is not None)
    return (
        f"the contender {contender.role} needs no fine-tuning and is proven better than the incumbent: "
        f"{points(contender.gain)} points (the interval starts at {points(contender.interval[0])}, Holm-adjusted "
        f"{p_text(contender.p_holm)}, minimum gain {minimum}); `tailorbird promote` makes it the champion",
        f"{contender.role} is one of {size_of_family} contenders that these rows compare with the incumbent, so its "
        "gain is slightly optimistic",
        *open_gates(contender.gates, owner=f"for {contender.role}, the"),
    )


def _cheaper(inputs: ExplanationInputs) -> tuple[str, ...]:
    ratio, facts = inputs.assessment.cost_ratio, inputs.assessment.facts
    assert ratio is not None  # rule 7 requires a measured cost
    others = ""
    if inputs.assessment.contenders or inputs.assessment.hybrid:
        others = ", and it is also cheaper than each other contender that is not proven worse than it"
    return (
        f"cost: to serve, the candidate costs {ratio[0]:.2f} times as much as the incumbent ("
        f"{cost_basis(inputs.assessment.cost_unit)}; the interval ends at {ratio[2]:.2f}){others}",
        f"the candidate is non-inferior: {interval_start(facts)}, above the limit of {points(-facts.margin)}",
        f"the losses accepted for lower cost since the last proven champion sum to {size(facts.accepted_loss)}, under "
        f"the minimum gain of {size(facts.minimum_gain)}",
    )


def interval_start(facts: Facts, *, of: str = "gain") -> str:
    """Return where the interval in the test of non-inferiority starts, and why if it is not the reported interval."""
    if facts.lowest == facts.low:
        return f"the interval of the {of} starts at {points(facts.low)} points"
    return f"the interval of the {of} starts at {_with_rare_losses(facts.lowest)}"


def _with_rare_losses(lowest: float) -> str:
    """Return the start of an interval that is wider than the reported one."""
    why = "if rare large losses are considered, as in each test of non-inferiority over documents"
    return f"{points(lowest)} points {why}"


def _not_for_cost(inputs: ExplanationInputs) -> tuple[str, ...]:
    """Return why a cheaper candidate with an interval above the limit does not replace the incumbent."""
    facts = inputs.assessment.facts
    if facts.proven or facts.surpassed or not facts.cheaper or facts.low <= -facts.margin:
        return ()
    if not facts.not_inferior:
        limit = f"not above the limit of {points(-facts.margin)}"
        return (f"the candidate costs less, but it may be inferior: {interval_start(facts)}, {limit}",)
    if not is_affordable(facts.accepted_loss, minimum_gain=facts.minimum_gain):
        return (
            "the candidate costs less and is non-inferior, but the losses accepted for lower cost since the last "
            f"proven champion would sum to {size(facts.accepted_loss)}, not under the minimum gain of "
            f"{size(facts.minimum_gain)}",
        )
    gates = inputs.assessment.gates
    return (*failed_gates(gates), *(open_gates(gates, regulated=True) if facts.regulated else ()))


def _disagreement(inputs: ExplanationInputs) -> tuple[str, ...]:
    low, high = inputs.main.interval
    p_value, alpha = inputs.assessment.main.p_holm, inputs.assessment.alpha
    if (p_value < alpha) == (low > 0 or high < 0):
        return ()
    return (
        f"the p value and the interval disagree: {p_text(p_value)} at alpha = {alpha:.2g}, interval {points(low)} to "
        f"{points(high)} points",
    )
