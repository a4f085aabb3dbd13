"""The cost of each model at the recipe's volume, for readers: the decision reads the ratios of `relation` only."""

from collections.abc import Sequence

from tailorbird.evaluation.gates.cost import ServingUsage, TrainingUsage
from tailorbird.evaluation.gates.prices import (
    CostTerms,
    mean_interval,
    missing_for_serving,
    missing_for_training,
    price_serving,
    price_training,
)
from tailorbird.evaluation.verdict.parts import ContenderCost
from tailorbird.evaluation.verdict.relation import CostTable


def contender_costs(costs: CostTable, roles: Sequence[str]) -> tuple[ContenderCost, ...]:
    """Return the cost of the models in these roles; empty if the recipe has no prices or nothing was measured."""
    terms = costs.protocol.cost
    if terms is None or costs.serving is None:
        return ()
    trained = {role: costs.training.get(role, TrainingUsage()) for role in roles}
    return tuple(
        _cost(role, costs.serving[role], training=training, terms=terms, alpha=costs.alpha)
        for role, training in trained.items()
    )


def _cost(role: str, usage: ServingUsage, *, training: TrainingUsage, terms: CostTerms, alpha: float) -> ContenderCost:
    missing = dict.fromkeys((*missing_for_serving(usage, terms=terms), *missing_for_training(training, terms=terms)))
    if missing:
        return ContenderCost(role=role, missing=tuple(missing))
    serving = price_serving(usage, terms=terms)
    trained = price_training(training, terms=terms)
    mean, half = mean_interval(serving.total, alpha=alpha)
    total = mean + trained
    return ContenderCost(
        role=role,
        total=total,
        interval=(total - half, total + half),
        replicas=float(serving.replicas.mean()),
        tokens=float(serving.tokens.mean()),
        training=trained,
    )


def named(role: str) -> str:
    """Return a role in a sentence: `the candidate`, but `bag_of_words`."""
    return f"the {role}" if role in ("incumbent", "candidate", "hybrid") else role


def money(amount: float) -> str:
    """Return an amount with two decimals, or with two digits if it is below 0.01."""
    return f"{amount:,.2f}" if abs(amount) >= 0.01 or amount == 0 else f"{amount:.2g}"
