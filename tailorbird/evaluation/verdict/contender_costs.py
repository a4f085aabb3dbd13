"""The cost of every contender at the stated volume, and the cheapest that is not shown to be worse than the winner.

Nothing here changes the outcome: the rules read the cost gate and the cost ratios only.
"""

from collections.abc import Callable, Sequence

from tailorbird.evaluation.gates.cost import ServingUsage, TrainingUsage
from tailorbird.evaluation.gates.prices import (
    CostTerms,
    mean_interval,
    missing_for_serving,
    missing_for_training,
    price_serving,
    price_training,
)
from tailorbird.evaluation.verdict.assess import Assessment
from tailorbird.evaluation.verdict.family import compare_family
from tailorbird.evaluation.verdict.formatting import interval_name, listed, points
from tailorbird.evaluation.verdict.parts import ContenderCost, CostDifference, GainOverSelected
from tailorbird.evaluation.verdict.protocol import TestProtocol

EQUAL_COSTS = 0.001  # share of the lowest cost by which another cost may exceed it and count as equal


def contender_costs(
    assessment: Assessment, *, selected: str, training: TrainingUsage, protocol: TestProtocol
) -> tuple[ContenderCost, ...]:
    """Return the cost of each contender at the recipe's volume, compared with the model that the verdict selects.

    Return an empty tuple if the recipe has no prices or the costs were not measured. Gains are compared by Holm's
    method over all other contenders, as those of the family over the incumbent.
    """
    terms, usages = protocol.cost, assessment.costs
    if terms is None or usages is None:
        return ()
    tests = protocol.model_copy(update={"alpha": assessment.alpha})
    others = {role: table for role, table in assessment.tables.items() if role != selected}
    gains = compare_family(others, incumbent=assessment.tables[selected], protocol=tests)
    hybrid = assessment.hybrid
    fine_tuned = {"candidate"}  # the training of a champion is already paid
    if hybrid is not None and any(part.role == "candidate" for part in hybrid.parts):
        fine_tuned.add("hybrid")
    trained = {role: training if role in fine_tuned else TrainingUsage() for role in usages}
    costs = []
    for role in assessment.tables:
        cost = _cost(role, usages[role], training=trained[role], terms=terms, alpha=assessment.alpha)
        if role != selected:
            gain = gains[role]
            cost = cost.model_copy(
                update={
                    "difference": _difference(
                        [(usages[each], trained[each]) for each in (role, selected)], terms=terms, alpha=tests.alpha
                    ),
                    "gain": GainOverSelected(
                        gain=gain.comparison.gain, interval=gain.comparison.interval, level=gain.level
                    ),
                }
            )
        costs.append(cost)
    return tuple(costs)


def _cost(role: str, usage: ServingUsage, *, training: TrainingUsage, terms: CostTerms, alpha: float) -> ContenderCost:
    missing = dict.fromkeys((*missing_for_serving(usage, terms=terms), *missing_for_training(training, terms=terms)))
    if missing:
        return ContenderCost(role=role, missing=tuple(missing))
    serving, trained = price_serving(usage, terms=terms), price_training(training, terms=terms)
    mean, half = mean_interval(serving.total, alpha=alpha)
    total = mean + trained
    return ContenderCost(
        role=role,
        total=total,
        interval=(total - half, total + half),
        replicas=float(serving.replicas.mean()),
        busy=float(serving.busy.mean()),
        replica_hours=float(serving.replica_hours.mean()),
        tokens=float(serving.tokens.mean()),
        storage=serving.storage,
        training=trained,
    )


def _difference(
    models: Sequence[tuple[ServingUsage, TrainingUsage]], *, terms: CostTerms, alpha: float
) -> CostDifference | None:
    """Return the total of the first model minus that of the second; None if one of them is not assessable."""
    if any(missing_for_serving(usage, terms=terms) for usage, _ in models):
        return None
    if any(missing_for_training(training, terms=terms) for _, training in models):
        return None
    ours, theirs = (price_serving(usage, terms=terms).total for usage, _ in models)
    of_training = price_training(models[0][1], terms=terms) - price_training(models[1][1], terms=terms)
    mean, half = mean_interval(ours - theirs, alpha=alpha)
    mean += of_training
    return CostDifference(estimate=mean, interval=(mean - half, mean + half))


def cheapest_of(costs: tuple[ContenderCost, ...], allowed: Callable[[GainOverSelected], bool]) -> ContenderCost | None:
    """Return the cheapest of the selected model and those whose gain over it is allowed; None if no cost is known.

    If the selected model costs at most `EQUAL_COSTS` more than the cheapest, it is returned.
    """
    known = [cost for cost in costs if cost.total is not None and (cost.gain is None or allowed(cost.gain))]
    if not known:
        return None
    lowest = min(cost.total for cost in known if cost.total is not None)

    def order(cost: ContenderCost) -> tuple[bool, float]:
        assert cost.total is not None
        return cost.gain is not None or cost.total > (1 + EQUAL_COSTS) * lowest, cost.total

    return min(known, key=order)


def common_cost(amounts: Sequence[float], *, tolerance: float = EQUAL_COSTS) -> float | None:
    """Return the mean of two or more costs that are the same; None if they differ, or if there are fewer.

    Costs are the same if the highest exceeds the lowest by at most `tolerance`, a share of the lowest.
    """
    same = len(amounts) > 1 and max(amounts) <= (1 + tolerance) * min(amounts)
    return sum(amounts) / len(amounts) if same else None


def cheapest_sentences(costs: tuple[ContenderCost, ...], *, protocol: TestProtocol) -> tuple[str, ...]:
    """Return a sentence on the cheapest contender that is not shown to be worse than the selected model.

    *Not shown to be worse* means that the interval of its gain does not end below 0. *Non-inferior* is the stronger
    statement of rule 7: the interval starts above minus the non-inferiority margin. If another contender is the
    cheapest of those that are non-inferior, a second sentence names it. If all known costs are the same, one sentence
    states this instead. A last one names the costs that are not known.
    """
    terms = protocol.cost
    if terms is None or not costs:
        return ()
    volume = f"for {terms.requests_per_month:,.0f} requests a month over {terms.horizon_months:g} months"
    known = " with a known cost" if any(cost.missing for cost in costs) else ""
    same = common_cost([cost.total for cost in costs if cost.total is not None])
    if same is not None:
        sentences = [f"cost: all contenders{known} cost the same: about {money(same)} {volume}"]
    else:
        sentences = _different(costs, known=known, volume=volume, margin=protocol.non_inferiority_margin)
    sentences += [
        f"the cost of {named(cost.role)} is not assessable: {', '.join(cost.missing)}" for cost in costs if cost.missing
    ]
    return tuple(sentences)


def _different(costs: tuple[ContenderCost, ...], *, known: str, volume: str, margin: float) -> list[str]:
    """Return the sentences on the cheapest contenders if the costs differ."""
    selected = next(cost for cost in costs if cost.gain is None)
    cheapest = cheapest_of(costs, lambda gain: gain.not_worse)
    non_inferior = cheapest_of(costs, lambda gain: gain.is_above(-margin))
    sentences = []
    if cheapest is selected:
        same = [cost for cost in costs if cost.gain is not None and cost.gain.not_worse and _equal(cost, selected)]
        if same:
            others, what = listed([named(cost.role) for cost in same]), f"{money(selected.total or 0.0)} {volume}"
            sentences.append(
                f"cost: {named(selected.role)} costs about the same as {others}: {what}; no contender{known} that is "
                "not shown to be worse costs less"
            )
        else:
            what = f"of the contenders{known} that are not shown to be worse than it"
            sentences.append(_cheapest(selected, selected=selected, what=what, volume=volume, margin=margin))
    elif cheapest is not None:
        what = f"contender{known} that is not shown to be worse than the selected model, {named(selected.role)}"
        sentences.append(_cheapest(cheapest, selected=selected, what=what, volume=volume, margin=margin))
    if non_inferior is selected is not cheapest:
        sentences.append(f"cost: no contender{known} that is non-inferior to {named(selected.role)} costs less than it")
    elif non_inferior is not None and non_inferior is not cheapest:
        what = f"contender{known} that is non-inferior to {named(selected.role)}"
        sentences.append(_cheapest(non_inferior, selected=selected, what=what, volume=volume, margin=margin))
    return sentences


def _equal(one: ContenderCost, other: ContenderCost) -> bool:
    return common_cost([cost.total for cost in (one, other) if cost.total is not None]) is not None


def _cheapest(cost: ContenderCost, *, selected: ContenderCost, what: str, volume: str, margin: float) -> str:
    assert cost.total is not None  # the cheapest has a known cost
    sentence = f"cost: {named(cost.role)} is the cheapest {what}: {money(cost.total)} {volume}"
    if cost.gain is None:
        return sentence
    if selected.total is not None and cost.difference is not None:
        low, high = cost.difference.interval
        sentence += f", instead of {money(selected.total)} (difference {money(low)} to {money(high)}"
        sentence += ")" if high < 0 else ", so it is not shown to cost less)"
    low, high = cost.gain.interval
    sentence += f"; its gain over {named(selected.role)} is {points(cost.gain.gain)} points "
    sentence += f"({interval_name(cost.gain.level)} {points(low)} to "
    if cost.gain.is_above(-margin):
        worse = "" if cost.gain.not_worse else ", although it is worse"
        return f"{sentence}{points(high)}), so it is non-inferior (limit {points(-margin)}){worse}"
    return f"{sentence}{points(high)}), so it is not shown to be non-inferior (limit {points(-margin)})"


def named(role: str) -> str:
    """Return a role in a sentence: `the candidate`, but `bag_of_words`."""
    return f"the {role}" if role in ("incumbent", "candidate", "hybrid") else role


def money(amount: float) -> str:
    """Return an amount with two decimals, or with two digits if it is below 0.01."""
    return f"{amount:,.2f}" if abs(amount) >= 0.01 or amount == 0 else f"{amount:.2g}"
