"""The measured costs and the cost of each contender at the recipe's volume, in sentences and in Markdown."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from tailorbird.evaluation.gates.cost import ServingDevice
from tailorbird.evaluation.gates.prices import CostTerms
from tailorbird.evaluation.report.evidence import UNREGISTERED, Evidence
from tailorbird.evaluation.verdict.contender_costs import money, named
from tailorbird.evaluation.verdict.explain import cheaper_text
from tailorbird.evaluation.verdict.formatting import cost_basis
from tailorbird.evaluation.verdict.parts import ContenderCost
from tailorbird.evaluation.verdict.types import Verdict

PARTS = ("replicas", "tokens", "training")
UNKNOWN = "not assessable"


def cost_sentence(evidence: Evidence) -> str | None:
    """Return the ratio of the measured costs, the training and the prices; None if there is none of them."""
    cost = evidence.cost
    terms = evidence.protocol.cost
    if cost.serving is None or cost.device is None:
        return None
    parts = [_serving_sentence(evidence, cost.device)]
    if evidence.training is not None:
        parts = [parts[0] or "the costs of serving the candidate and the incumbent cannot be compared"]
        parts.append(f"training used {cost.training}")
    if terms is not None:
        parts.append(terms_sentence(terms))
    sentence = "; ".join(filter(None, parts))
    return f"cost: {sentence}" if sentence else None


def _serving_sentence(evidence: Evidence, device: ServingDevice) -> str:
    """Return what the candidate costs or, without one, the selected model; empty if that cannot be compared."""
    verdict = evidence.verdict
    role = "candidate" if verdict.candidate is not None else verdict.selected
    ratio = None if role == "incumbent" else verdict.relation(role, "incumbent").cost_ratio
    if ratio is None:
        return ""
    estimate, low, high = ratio
    return (
        f"to serve, {named(role)} costs {estimate:.2f} times as much as the incumbent ({low:.2f} to {high:.2f}, "
        f"{cost_basis(verdict.cost_unit)}, {measured_on(evidence, device)})"
    )


def measured_on(evidence: Evidence, device: ServingDevice) -> str:
    """Return the device of the measured costs, and the engine if the service has another."""
    engine = evidence.recipe.serving.engine
    other = "" if engine == device.engine else f" with {device.engine}, although the service uses {engine}"
    return f"measured on {device.name}{other}"


def terms_sentence(terms: CostTerms) -> str:
    """Return the volume, the replicas and the prices."""
    prices = {
        "CPU-hour": terms.price_per_cpu_hour,
        "GPU-hour": terms.price_per_gpu_hour,
        "1,000 input tokens": terms.token_prices and terms.token_prices[0],
        "1,000 output tokens": terms.token_prices and terms.token_prices[1],
    }
    known = [f"{price:g} per {unit}" for unit, price in prices.items() if price is not None]
    resources = _count(terms.cpus_per_replica, "CPU core")
    if terms.gpus_per_replica:
        resources += f" and {_count(terms.gpus_per_replica, 'GPU')}"
    replicas = f"at least {_count(terms.min_replicas, 'replica')}, each with {resources}"
    listed = ", ".join(known) or "none"
    volume = f"{terms.requests_per_month:,.0f} requests a month"
    return f"{volume}, {replicas}; prices in the recipe's currency: {listed}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def cost_lines(evidence: Evidence) -> list[str]:
    """Return the heading and the table of the contenders' costs in Markdown; empty without prices."""
    costs, terms = evidence.verdict.costs, evidence.protocol.cost
    if not costs or terms is None:
        return []
    rows = []
    for cost in costs:
        cells = [_with_interval(cost)]
        cells += ["" if cost.total is None else money(getattr(cost, part)) for part in PARTS]
        rows.append("| " + " | ".join((cost.role, *cells)) + " |")
    head = f"| contender | total (interval) | {' | '.join(PARTS)} |\n|---|---|{'---|' * len(PARTS)}\n"
    return [
        f"## Cost of {terms.horizon_months:g} months",
        f"At {terms_sentence(terms)}.",
        head + "\n".join(rows),
        "The cost of replicas is that of the hours for which they are paid, busy or idle.",
    ]


def _with_interval(cost: ContenderCost) -> str:
    if cost.total is None or cost.interval is None:
        return UNKNOWN
    low, high = cost.interval
    return f"{money(cost.total)} ({money(low)} to {money(high)})"


def costs_by_digest(evidence: Evidence) -> dict[str, str]:
    """Return what it costs to serve each registered version of a run, in words, by digest; empty if not measured.

    With prices, that is the cost of a month at the recipe's volume, else the seconds for 1,000 answers.
    """
    terms, usages = evidence.protocol.cost, evidence.cost.serving or {}
    costs = {}
    for role, version in evidence.versions.items():
        total = next((cost.total for cost in evidence.verdict.costs if cost.role == role), None)
        if version.digest == UNREGISTERED:
            continue
        if terms is not None and total is not None:
            amount = money(total / terms.horizon_months)
            costs[version.digest] = f"{amount} a month at {terms.requests_per_month:,.0f} requests"
        elif role in usages:
            usage = usages[role]
            seconds = fmean(usage.device_s)
            amount = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
            costs[version.digest] = f"{amount} {usage.unit} for 1,000 answers"
    return costs


def cost_answer(evidence: Evidence) -> str:
    """Return what serving costs a month, or by which factor it differs, or why that is not known."""
    verdict, terms = evidence.verdict, evidence.protocol.cost
    costs = {cost.role: cost for cost in verdict.costs}
    if terms is not None and costs:
        known = {role: cost.total / terms.horizon_months for role, cost in costs.items() if cost.total is not None}
        volume = f"At {terms.requests_per_month:,.0f} requests a month, with the training of this run spread over "
        sentences = [
            f"{a_month} {volume}{terms.horizon_months:g} months." if (a_month := _a_month(known, verdict)) else "",
            *_not_assessable(verdict.costs),
        ]
        return " ".join(filter(None, sentences))
    unpriced = "The recipe has no prices (`evaluation.cost`), so there is no cost a month."
    if evidence.cost.device is None:
        return f"The cost of serving was not measured. {unpriced}"
    sentences = [_serving_sentence(evidence, evidence.cost.device), cheaper_text(verdict)]
    measured = "".join(f"{sentence[0].upper()}{sentence[1:]}. " for sentence in sentences if sentence)
    return f"{measured}{unpriced}"


def _a_month(known: Mapping[str, float], verdict: Verdict) -> str:
    """Return the known costs a month of the selected model, incumbent and candidate."""
    shown = [role for role in dict.fromkeys((verdict.selected, "incumbent", "candidate")) if role in known]
    amounts = ", ".join(f"{named(role)} {money(known[role])}" for role in shown)
    return f"A month costs, in the recipe's currency: {amounts}." if shown else ""


def _not_assessable(costs: Sequence[ContenderCost]) -> list[str]:
    """Return a sentence for each set of reasons, with the contenders whose cost is not assessable for them."""
    roles: dict[tuple[str, ...], list[str]] = {}
    for cost in costs:
        if cost.missing:
            roles.setdefault(cost.missing, []).append(named(cost.role))
    return [f"The cost of {', '.join(names)} is {UNKNOWN}: {', '.join(why)}." for why, names in roles.items()]
