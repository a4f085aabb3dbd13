"""The verdict as a chain of at most eight sentences, each with its figure."""

from tailorbird.config.evaluation import CASCADE
from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.gates.base import Bound, Gate, State
from tailorbird.evaluation.statistics.documents import few_documents
from tailorbird.evaluation.statistics.headroom import Headroom
from tailorbird.evaluation.statistics.power import rows_text
from tailorbird.evaluation.verdict.decide import CANDIDATE, HYBRID, INCUMBENT, Outcome
from tailorbird.evaluation.verdict.formatting import (
    at_most,
    cost_basis,
    listed,
    model_name,
    money,
    named,
    points,
    score_text,
    sentence,
    size,
)
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.parts import TestedModel
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import Relation
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.test_set_ledger import RowUse

REMEDIES = {
    "calibration": "validation rows with the class shares of the test rows fit its confidence",
    "groups": "training rows of these groups",
    "counterfactual": "training rows with names, sexes and ages swapped",
    "robustness": "training rows with typing errors",
    "suites": "training rows like those of the suites, or fewer epochs",
    "cost": "fewer or smaller replicas",
}
"""What lets a candidate pass a gate that it fails."""


def explain(verdict: Verdict, *, inputs: VerdictInputs, protocol: TestProtocol) -> tuple[str, ...]:
    """Return answers, compared models, the comparison that decides, costs, gates, rows, and what
    would change it.

    If no model was trained, the second sentence says why.
    """
    chain = [
        _answers(verdict),
        _no_training(verdict),
        _compared(verdict),
        _deciding(verdict),
        _replacement(verdict),
        cost_text(verdict),
        _gates(verdict, protocol=protocol),
        _rows(verdict, inputs=inputs, protocol=protocol),
        what_would_change(verdict),
    ]
    return tuple(sentence(text) for text in chain if text)


def _score(metric: str, score: float, *, form: str = "") -> str:
    """Return a score as a percentage, or as a number with its metric."""
    spec = METRICS[metric]
    text = score_text(metric, score, form=form)
    if spec.is_percentage:
        return text
    return f"{spec.title} {text}"


def _model(verdict: Verdict, role: str) -> str:
    """Return a model with its score: `the incumbent, a bag-of-words model (74.0%)`."""
    model = verdict.model(role)
    name = model_name(model.kind)
    if role == HYBRID and verdict.hybrid is not None:
        parts = f"{named(verdict.hybrid.first)} and {named(verdict.hybrid.second)}"
        return f"the hybrid of {parts} ({_score(verdict.metric, model.score)})"
    if model.role == model.kind:
        return f"{role} ({_score(verdict.metric, model.score)})"
    return f"{named(role)}, the {name} ({_score(verdict.metric, model.score)})"


def _answers(verdict: Verdict) -> str:
    """Return the two answers: whether to fine-tune, and what serves."""
    answer = {
        Outcome.FINE_TUNE: "fine-tuning pays",
        Outcome.HYBRID: "the hybrid with a fine-tuned part pays",
        Outcome.STAY: "fine-tuning does not pay",
        Outcome.INSUFFICIENT_EVIDENCE: "these rows do not decide whether fine-tuning pays",
    }[verdict.outcome]
    if verdict.candidate is None:
        answer = "fine-tuning has nothing to gain"
    selected = _model(verdict, verdict.selected)
    if verdict.stopped_by:
        answer = _stopped(verdict)
    if verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        return f"{answer}: use {selected}"
    if verdict.selected == CANDIDATE:  # which its gates do not stop
        answer = (
            "the candidate dominates the incumbent, but not every other model without fine-tuning"
        )
    action = f"keep {selected}"
    if verdict.selected != INCUMBENT:
        action = f"replace {_model(verdict, INCUMBENT)} by {selected}"
    if verdict.stopped_by:
        return f"{action}: {answer}"
    is_open = verdict.outcome is Outcome.INSUFFICIENT_EVIDENCE
    return f"{answer}: {'for now, ' if is_open else ''}{action}"


def _stopped(verdict: Verdict) -> str:
    """Return what the candidate gains over the incumbent, and the gates that stop it all the
    same."""
    relation = verdict.relation(CANDIDATE, INCUMBENT)
    gain = f"better by {100 * relation.gain:.1f} points"
    if not relation.is_better:
        gain = "cheaper and non-inferior"
    reasons = [_stopping(gate) for gate in verdict.gates if gate.name in verdict.stopped_by]
    return f"the fine-tuned model is {gain}, but its {listed(reasons)}"


def _stopping(gate: Gate) -> str:
    """Return why a gate stops a model: `calibration gate fails (debiased ECE 9.8 points, limit
    5.0)`."""
    failed = [bound for bound in gate.bounds if bound.state is State.FAILS]
    if not failed:
        return f"{gate.name} gate cannot be assessed on these rows"
    bound = failed[0]
    if gate.name == "cost":
        return f"{gate.name} gate fails ({bound.what} {money(bound.estimate)})"
    figures = f"{100 * bound.estimate:.1f} points, limit {100 * bound.limit:.1f}"
    return f"{gate.name} gate fails ({bound.what} {figures})"


def _no_training(verdict: Verdict) -> str:
    if verdict.headroom is None:
        return ""
    why = headroom_text(verdict.headroom, metric=verdict.metric, minimum_gain=verdict.minimum_gain)
    return f"no training was started: {why}"


def headroom_text(headroom: Headroom, *, metric: str, minimum_gain: float) -> str:
    """Return what can be gained at most over the incumbent, and that this is below the minimum
    gain."""
    score = _score(metric, headroom.score, form=".5g")
    bound = (
        f"at most {at_most(headroom.most)} points can be gained "
        f"({100 * (1 - headroom.level):.4g}% bound)"
    )
    return (
        f"the incumbent scores {score} on {headroom.num_rows:,} validation rows, so {bound}, below "
        f"the minimum gain of {size(minimum_gain)}"
    )


def _compared(verdict: Verdict) -> str:
    contenders = [
        _score_of(verdict, model)
        for model in verdict.models
        if model.role not in (INCUMBENT, CANDIDATE, HYBRID)
    ]
    names = [_model(verdict, role) for role in (INCUMBENT, CANDIDATE, HYBRID) if verdict.has(role)]
    kind = "without fine-tuning " if verdict.candidate is not None else ""
    further = f", and {kind}{listed(contenders)}" if contenders else ""
    return f"compared on the same {verdict.n:,} test rows: {'; '.join(names)}{further}"


def _score_of(verdict: Verdict, model: TestedModel) -> str:
    stopped = "" if model.passes else ", stopped by its gates"
    if not model.is_opponent:
        stopped += " and no opponent"
    return f"{model.role} ({_score(verdict.metric, model.score)}{stopped})"


def _deciding(verdict: Verdict) -> str:
    """Return the comparison that decides, and by which part of *dominates*; empty if `_replacement`
    has it."""
    relation = verdict.closest
    is_replaced = verdict.candidate is None and verdict.selected != INCUMBENT
    if relation is None or is_replaced:
        return ""
    if not relation.dominates:
        pair = f"{named(relation.first)} does not dominate {named(relation.second)}"
        return f"{pair}: {relation.gain_text()}; {_why_not(verdict, relation)}"
    return _dominance(verdict, relation)


def _dominance(verdict: Verdict, relation: Relation) -> str:
    """Return by which part of *dominates* the first model dominates the second."""
    first = named(relation.first)
    second = named(relation.second)
    gain = relation.gain_text()
    if relation.is_better:
        least = f"the interval is above 0 and the gain at least {size(verdict.minimum_gain)}"
        return f"{first} is proven better than {second}: {gain}; {least}"
    limit = (
        f"the loss is below {size(verdict.non_inferiority_margin)} (lowest "
        f"{points(relation.lowest)})"
    )
    return f"{first} costs less than {second} and is non-inferior: {gain}; {limit}"


def _why_not(verdict: Verdict, relation: Relation) -> str:
    low, high = relation.interval
    if high < 0:
        return "it is worse"
    if relation.net is not None and relation.net <= 0:
        return f"the gain is worth less than its further cost (net {money(relation.net)})"
    if low > 0:
        return (
            "the gain is above 0, but measured below the minimum gain of "
            f"{size(verdict.minimum_gain)}"
        )
    if relation.is_cheaper and relation.is_non_inferior:
        return (
            "it costs less and is non-inferior, but this is not shown for the last champion that "
            "was proven better"
        )
    if relation.is_cheaper:
        margin = points(-verdict.non_inferiority_margin)
        return (
            f"it costs less, but a loss beyond {margin} points is not ruled out (lowest "
            f"{points(relation.lowest)})"
        )
    if high < verdict.minimum_gain:
        return f"a gain of {size(verdict.minimum_gain)} is ruled out"
    return f"both 0 and the minimum gain of {size(verdict.minimum_gain)} are possible"


def _replacement(verdict: Verdict) -> str:
    """Return why another model replaces the incumbent, if no fine-tuned model is eligible."""
    if verdict.selected == INCUMBENT or verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        return ""
    reason = _dominance(verdict, verdict.relation(verdict.selected, INCUMBENT))
    return f"the incumbent is replaced, because {reason}"


def cost_text(verdict: Verdict) -> str:
    """Return what the selected model, or else the candidate, costs, and a non-inferior model that
    costs less."""
    if verdict.cost_unit is None:
        return ""
    return "; ".join(filter(None, (_cost_against_incumbent(verdict), _cheaper(verdict))))


def _cost_against_incumbent(verdict: Verdict) -> str:
    role = verdict.described
    if role is None:
        return ""
    relation = verdict.relation(role, INCUMBENT)
    if relation.cost_ratio is None:
        text = (
            f"the costs of {named(role)} and of the incumbent cannot be compared, so it is not "
            "cheaper"
        )
    else:
        estimate, low, high = relation.cost_ratio
        ratio = f"{estimate:.2f} ({low:.2f} to {high:.2f}) times what the incumbent costs"
        text = f"to serve, {named(role)} costs {ratio} ({cost_basis(verdict.cost_unit)})"
    if relation.net is not None and relation.net_interval is not None:
        low, high = relation.net_interval
        text += f", with a yearly net of {money(relation.net)} ({money(low)} to {money(high)})"
    return text


def _cheaper(verdict: Verdict) -> str:
    """Return which non-inferior model costs least, if one costs less than the selected model; else
    an empty text."""
    relation = verdict.cheaper
    if relation is None or relation.cost_ratio is None:
        return ""
    below = f"at most {at_most(max(-relation.lowest, 0.0))} points below"
    loss = f"{named(relation.first)} is {below} {named(relation.second)}"
    share = f"{100 * relation.cost_ratio[0]:.2g}%"
    if verdict.cost_unit == "price":
        return f"{loss} and costs {share} as much"
    return (
        f"{loss} and needs {share} of its {verdict.cost_unit} per row; set evaluation.cost to let "
        "the cost count"
    )


def _gates(verdict: Verdict, *, protocol: TestProtocol) -> str:
    """Return the states of the candidate's gates, or of the hybrid's if it is selected.

    Without a candidate, they are those of the selected model.
    """
    role = CANDIDATE
    if verdict.selected == HYBRID or verdict.candidate is None:
        role = verdict.selected
    sentences = gate_sentences(verdict.model(role).gates, role=role, regulated=protocol.regulated)
    if role == INCUMBENT:
        sentences = ()
    return "; ".join((*sentences, *_incumbent_gates(verdict)))


def _incumbent_gates(verdict: Verdict) -> tuple[str, ...]:
    """Return which limits of the recipe the incumbent fails, and what follows; empty if it fails
    none."""
    failed = [gate for gate in verdict.incumbent.gates if gate.state is State.FAILS]
    if not failed:
        return ()
    done = "it is replaced"
    if verdict.selected == INCUMBENT:
        done = "it is kept, because no model that passes its gates dominates it"
    return (f"the incumbent's {listed([_stopping(gate) for gate in failed])}: {done}",)


def gate_sentences(gates: tuple[Gate, ...], *, role: str, regulated: bool) -> tuple[str, ...]:
    """Return the states of the gates of a model: those that fail, those that are open, and the
    names of all others."""
    owner = f"{named(role)}'s"
    sentences = [
        *failed_gates(gates, owner=owner),
        *open_gates(gates, regulated=regulated, owner=owner),
    ]
    for state, what in (
        (State.PASSES, f"{named(role)} passes"),
        (State.NOT_APPLICABLE, "not applicable:"),
    ):
        names = [gate.name for gate in gates if gate.state is state]
        if names:
            sentences.append(f"{what} {listed(names)}")
    return tuple(sentences)


def _rows(verdict: Verdict, *, inputs: VerdictInputs, protocol: TestProtocol) -> str:
    """Return what the rows limit: known rows, rows that a model was trained on, and units of
    several rows."""
    parts = []
    look = inputs.look
    if look.num_seen:
        parts.append(
            f"{known_rows(look)}, so alpha is {verdict.alpha:.2g} instead of {protocol.alpha:g}"
        )
    parts += inputs.trained_rows.sentences(verdict.n + verdict.num_trained_rows)
    if verdict.num_units < verdict.n:
        units = (
            f"the {verdict.n:,} rows are {verdict.num_units:,} independent documents or groups of "
            "near copies"
        )
        parts.append(few_documents(verdict.num_units, num_rows=verdict.n) or units)
    return "; ".join(parts)


def known_rows(use: RowUse) -> str:
    """Return how many of the test rows earlier tests have used."""
    return f"{use.num_seen:,} of {use.num_rows:,} different test rows are known from earlier tests"


def what_would_change(verdict: Verdict) -> str:
    """Return what would lead to another outcome."""
    gain = size(verdict.minimum_gain)
    if verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        selected = named(verdict.selected)
        return (
            f"a later run replaces {selected} if a model dominates it, with a proven gain of "
            f"{gain} or more"
        )
    power = verdict.power
    if verdict.candidate is None or power is None:
        return "a training starts with a lower minimum gain"
    expected = size(verdict.expected_gain)
    needed = f"{rows_text(power.rows_needed)} would do so in 80% of tests"
    if power.rows_needed is None:
        needed = f"{rows_text(None)} would be needed"
    share = f"{power.at_expected_gain:.0%} of such tests of {verdict.n:,} rows"
    if verdict.expected_gain <= verdict.minimum_gain:
        needed = (
            f"no number of rows gives 80%, because expected_gain is not above minimum_gain ({gain})"
        )
    chosen = (
        f"{share} would choose a candidate that is {expected} better than {named(power.over)}; "
        f"{needed}"
    )
    failed = [gate.name for gate in verdict.gates if gate.state is State.FAILS]
    if failed and verdict.stopped_by:
        remedies = "; ".join(f"{name}: {REMEDIES[name]}" for name in failed)
        return f"the fine-tuned model would be chosen if it passed its gates ({remedies})"
    if failed:
        return (
            f"a candidate that passes {listed(failed)} and dominates all models without "
            "fine-tuning would be chosen"
        )
    if not verdict.candidate.passes:
        undecided = [gate.name for gate in verdict.gates if gate.state is State.NOT_ASSESSABLE]
        return (
            f"more rows would settle the open gates ({listed(undecided)}); assuming that they "
            f"pass, {chosen}"
        )
    if verdict.blocked_by:
        blocking = listed([named(role) for role in verdict.blocked_by])
        return f"a candidate that dominates {blocking} would be chosen; {chosen}"
    return chosen


def failed_gates(gates: tuple[Gate, ...], *, owner: str = "the") -> tuple[str, ...]:
    """Return a sentence for each bound that fails; `owner` begins the sentences (`the
    hybrid's`)."""
    sentences = []
    for gate in gates:
        for bound in gate.bounds:
            if bound.state is State.FAILS:
                text = _bound_text(bound, is_money=gate.name == "cost")
                sentences.append(f"{owner} {gate.name} gate fails: {text}")
    return tuple(sentences)


def open_gates(
    gates: tuple[Gate, ...], *, regulated: bool = False, owner: str = "the"
) -> tuple[str, ...]:
    """Return a sentence for each gate that is not assessable, with the open bounds and the rows
    that each needs.

    The groups gate comes first, because it names the groups that are not protected.
    """
    sentences = []
    for gate in sorted(gates, key=lambda gate: gate.name != "groups"):
        if gate.state is not State.NOT_ASSESSABLE:
            continue
        unproven = [bound for bound in gate.bounds if bound.state is State.NOT_ASSESSABLE]
        rule = ", but a regulated recipe requires it to pass" if regulated else ""
        if gate.name == "groups" and unproven:
            names = []
            for bound in unproven:
                group = bound.what.removeprefix("change for ")
                names.append(f"{group} ({bound.n:,} of {rows_text(bound.rows_needed)} needed)")
            sentences.append(
                f"{owner} groups gate does not rule out a loss in {listed(names)}{rule}"
            )
            continue
        bounds = [_bound_text(bound, is_money=gate.name == "cost") for bound in unproven]
        detail = ", ".join(bounds) or gate.note
        sentences.append(
            f"{owner} {gate.name} gate cannot be assessed on these rows{rule}: {detail}"
        )
    return tuple(sentences)


def _bound_text(bound: Bound, *, is_money: bool) -> str:
    """Return the estimate with its interval, limit and rows."""
    unit = "" if is_money else " points"

    def shown(amount: float) -> str:
        if is_money:
            return money(amount)
        return f"{100 * amount:.2f}"

    low, high = bound.interval
    facts = f"interval {shown(low)} to {shown(high)}, limit {shown(bound.limit)}, n = {bound.n:,}"
    if bound.detects is not None:
        facts += f", a loss of {100 * bound.detects:.1f} is found in 80% of tests"
    if bound.rows_needed is not None:
        facts += f"; about {bound.rows_needed:,} rows are needed"
    return f"the {bound.what} is {shown(bound.estimate)}{unit} ({facts})"


def why_no_hybrid(config: str, *, has_candidate: bool) -> str:
    """Return why the validation rows gave no hybrid."""
    if config == CASCADE:
        return "on validation, none scores as high as the best single model"
    if not has_candidate:
        return "no model was trained that could answer some groups"
    return "on validation one model would answer every row, or the incumbent is already a hybrid"
