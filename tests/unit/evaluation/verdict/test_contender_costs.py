"""Tests of the cost of each model at the recipe's volume."""

from dataclasses import replace

import pytest

from tailorbird.evaluation.gates.cost import ServingUsage, Tokens
from tailorbird.evaluation.gates.prices import ContenderCost
from tailorbird.evaluation.verdict.reach import compare_models
from tailorbird.registry.hybrid_routing import Routing
from tests.unit.evaluation.simulated import (
    Simulation,
    inputs_of_tables,
    on_cpu,
    protocol_of,
    tables_of,
)

COST = {
    "value_of_correct": 0.5,
    "requests_per_month": 10_000 / 12,
    "price_per_cpu_hour": 3.6,
}
SECONDS = {
    "incumbent": (500.0, 510.0, 490.0, 500.0, 500.0),
    "candidate": (400.0,) * 5,
    "bag_of_words": (20.0,) * 5,
    "centroid": (100.0,) * 5,
}


PRICED = Simulation(num_rows=300, gates=False, evaluation={"cost": COST}, costs=on_cpu(SECONDS))


def costs_of(simulation: Simulation) -> dict[str, ContenderCost]:
    inputs = inputs_of_tables(simulation, tables_of(simulation))
    compared = compare_models(inputs, on_all_rows=inputs, protocol=protocol_of(simulation))
    return {cost.role: cost for cost in compared.costs.contenders(list(compared.tables))}


def test_each_model_has_its_total_and_its_parts() -> None:
    costs = costs_of(PRICED)
    assert list(costs) == ["incumbent", "candidate", "bag_of_words", "centroid"]
    # 10,000 rows at 0.001 a CPU-second; an hour of training, for the candidate
    # only.
    assert {role: cost.total for role, cost in costs.items()} == pytest.approx(
        {"incumbent": 5.0, "candidate": 4.0 + 3.6, "bag_of_words": 0.2, "centroid": 1.0}
    )
    candidate = costs["candidate"]
    assert candidate.replicas == pytest.approx(4.0)
    assert candidate.tokens == 0
    assert candidate.training == pytest.approx(3.6)
    assert candidate.interval == pytest.approx((7.6, 7.6))
    low, high = costs["incumbent"].interval or (0, 0)
    assert low < 5.0 < high
    assert high - 5.0 == pytest.approx(2.7764 * 0.0707107 / 5**0.5, rel=1e-4)


def test_a_missing_price_is_named_and_no_number_is_known() -> None:
    tokens = Tokens("m at https://host/v1", (1000.0,) * 5, (100.0,) * 5)
    endpoint = ServingUsage((0.1,) * 5, tokens=tokens)
    cost = costs_of(replace(PRICED, costs={**on_cpu(SECONDS), "bag_of_words": endpoint}))[
        "bag_of_words"
    ]
    assert cost.missing == ("evaluation.endpoint has no prices for m at https://host/v1",)
    assert (cost.total, cost.interval, cost.tokens) == (None, None, None)


def test_without_prices_or_measurements_there_are_no_totals() -> None:
    assert costs_of(replace(PRICED, evaluation={})) == {}
    assert costs_of(replace(PRICED, costs=None)) == {}


def test_a_hybrid_has_the_training_of_a_candidate_that_is_its_part_and_the_costs_of_both_parts() -> (
    None
):
    hybrid = replace(
        PRICED,
        evaluation={"hybrid": "sex", "cost": COST},
        routing=Routing("group", "sex", ("male", "unstated"), None),
    )
    cost = costs_of(hybrid)["hybrid"]
    assert cost.training == pytest.approx(3.6)
    assert 4.0 < (cost.replicas or 0) < 5.0  # each part answers a share of the rows
