"""The measured costs and the cost of each contender for a year, in sentences."""

from collections.abc import Sequence
from statistics import fmean

from tailorbird.evaluation.gates.prices import ContenderCost, CostTerms
from tailorbird.evaluation.report.evidence import UNREGISTERED, Evidence
from tailorbird.evaluation.verdict.explain import cost_text
from tailorbird.evaluation.verdict.formatting import counted, money, named

UNKNOWN = "not assessable"


def cost_sentence(evidence: Evidence) -> str | None:
    """Return how costs were measured, the training and the prices; None if they were not
    measured."""
    cost = evidence.cost
    terms = evidence.protocol.cost
    if cost.serving is None or cost.device is None:
        return None
    engine = evidence.recipe.serving.engine
    parts = [f"measured on {cost.device.name}"]
    if engine != cost.device.engine:
        parts[0] += f" with {cost.device.engine}, although the service uses {engine}"
    if evidence.training is not None:
        parts.append(f"training used {cost.training}")
    if terms is not None:
        parts.append(terms_sentence(terms))
    return f"cost: {'; '.join(parts)}"


def terms_sentence(terms: CostTerms) -> str:
    """Return the volume, the payback time of the training, the replicas and the prices."""
    prices = {
        "CPU-hour": terms.price_per_cpu_hour,
        "GPU-hour": terms.price_per_gpu_hour,
    }
    for endpoint, token_prices in terms.token_prices.items():
        if token_prices is not None:
            prices[f"1,000 input tokens of {endpoint}"] = token_prices[0]
            prices[f"1,000 output tokens of {endpoint}"] = token_prices[1]
    known = [f"{price:g} per {unit}" for unit, price in prices.items() if price is not None]
    resources = counted(terms.cpus_per_replica, "CPU core")
    if terms.gpus_per_replica:
        resources += f" and {counted(terms.gpus_per_replica, 'GPU')}"
    replicas = f"at least {counted(terms.min_replicas, 'replica')}, each with {resources}"
    listed = ", ".join(known) or "none"
    return f"{_volume(terms)}, {replicas}; prices in the recipe's currency: {listed}"


def _volume(terms: CostTerms) -> str:
    return f"{terms.requests_per_month:,.0f} requests a month, with the training paid in one year"


def costs_by_digest(evidence: Evidence) -> dict[str, str]:
    """Return what it costs to serve each registered version of a run, in words, by digest; empty if
    not measured.

    With prices, that is the cost of a year at the recipe's volume, else the seconds for 1,000
    answers.
    """
    terms = evidence.protocol.cost
    usages = evidence.cost.serving or {}
    totals = _totals(evidence.verdict.costs)
    costs = {}
    for role, version in evidence.versions.items():
        if version.digest == UNREGISTERED:
            continue
        if terms is not None and role in totals:
            costs[version.digest] = (
                f"{money(totals[role])} a year at {terms.requests_per_month:,.0f} requests a month"
            )
        elif role in usages:
            usage = usages[role]
            seconds = fmean(usage.device_s)
            amount = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
            costs[version.digest] = f"{amount} {usage.unit} for 1,000 answers"
    return costs


def _totals(costs: Sequence[ContenderCost]) -> dict[str, float]:
    """Return the known costs of a year by role."""
    return {cost.role: cost.total for cost in costs if cost.total is not None}


def cost_answer(evidence: Evidence) -> str:
    """Return what a year costs, or by which factor costs differ, or why that is not known."""
    verdict = evidence.verdict
    terms = evidence.protocol.cost
    if terms is None or not verdict.costs:
        measured = cost_text(verdict)
        if evidence.cost.device is None:
            measured = "the cost of serving was not measured"
        sentences = ["The recipe has no prices (`evaluation.cost`), so there is no cost a year."]
        if measured:
            sentences.insert(0, f"{measured[:1].upper()}{measured[1:]}.")
        return " ".join(sentences)

    sentences = []
    totals = _totals(verdict.costs)
    roles = dict.fromkeys((verdict.selected, "incumbent", "candidate"))
    amounts = [f"{named(role)} {money(totals[role])}" for role in roles if role in totals]
    if amounts:
        sentences.append(
            f"At {_volume(terms)}, a year costs, in the recipe's currency: {', '.join(amounts)}."
        )
    unknown: dict[tuple[str, ...], list[str]] = {}
    for cost in verdict.costs:
        if cost.missing:
            unknown.setdefault(cost.missing, []).append(named(cost.role))
    for why, names in unknown.items():
        sentences.append(f"The cost of {', '.join(names)} is {UNKNOWN}: {', '.join(why)}.")
    return " ".join(sentences)
