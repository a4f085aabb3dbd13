"""Tests of the cost of each contender, and of the cheapest that is not shown to be worse than the selected model."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from tailorbird.evaluation.gates.cost import ServingUsage, Tokens, TrainingUsage
from tailorbird.evaluation.verdict.contender_costs import cheapest_of, common_cost
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.parts import ContenderCost
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.routing import Routing
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, on_cpu, protocol_of, tables_of

COST = {
    "value_of_correct": 0.5,
    "requests_per_month": 1000,
    "horizon_months": 10,
    "price_per_cpu_hour": 3.6,
    "price_per_gb_month": 0,
}
SECONDS = {
    "incumbent": (500.0, 510.0, 490.0, 500.0, 500.0),
    "candidate": (400.0,) * 5,
    "bag_of_words": (20.0,) * 5,
    "centroid": (100.0,) * 5,
}


def simulation_of(**changes: Any) -> Simulation:
    cost = COST | changes.pop("cost", {})
    return Simulation(gates=False, evaluation={"cost": cost}, costs=on_cpu(SECONDS), **changes)


@cache
def proven() -> Verdict:
    """Return a verdict in which the candidate is proven better than all others."""
    return verdict_of(simulation_of())


def verdict_of(simulation: Simulation, **changes: Any) -> Verdict:
    inputs = replace(inputs_of_tables(simulation, tables_of(simulation)), **changes)
    return decide(inputs, protocol=protocol_of(simulation))


def costs_of(verdict: Verdict) -> dict[str, ContenderCost]:
    return {cost.role: cost for cost in verdict.costs}


def reason(verdict: Verdict, start: str) -> str:
    [text] = [text for text in verdict.reasons if text.startswith(start)]
    return text


def test_each_contender_has_its_total_and_its_parts() -> None:
    costs = costs_of(proven())
    assert list(costs) == ["incumbent", "candidate", "bag_of_words", "centroid"]
    # 10,000 rows at 0.001 a CPU-second; an hour of training for the candidate only.
    assert {role: cost.total for role, cost in costs.items()} == pytest.approx(
        {"incumbent": 5.0, "candidate": 4.0 + 3.6, "bag_of_words": 0.2, "centroid": 1.0}
    )
    candidate = costs["candidate"]
    assert candidate.replicas == pytest.approx(4.0)
    assert candidate.busy == pytest.approx(4.0)
    assert (candidate.tokens, candidate.storage) == (0, 0)
    assert candidate.training == pytest.approx(3.6)
    assert candidate.replica_hours == pytest.approx(400 / 3600)
    assert candidate.interval == pytest.approx((7.6, 7.6))
    low, high = costs["incumbent"].interval or (0, 0)
    assert low < 5.0 < high
    assert high - 5.0 == pytest.approx(2.7764 * 0.0707107 / 5**0.5, rel=1e-4)


def test_differences_and_gains_are_those_to_the_selected_model() -> None:
    verdict = proven()
    costs = costs_of(verdict)
    assert verdict.winner == "candidate"
    assert (costs["candidate"].difference, costs["candidate"].gain) == (None, None)
    difference, gain = costs["incumbent"].difference, costs["incumbent"].gain
    assert difference is not None
    assert gain is not None
    assert difference.estimate == pytest.approx(5.0 - 7.6)
    assert gain.gain == pytest.approx(-verdict.gain)
    levels = sorted(cost.gain.level for cost in costs.values() if cost.gain)  # Holm's, over three contenders
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])


def test_the_gains_over_a_kept_incumbent_are_those_of_the_family() -> None:
    verdict = verdict_of(simulation_of(candidate=0.7))
    assert verdict.winner == "incumbent"
    costs = costs_of(verdict)
    for role, member in (("candidate", verdict), ("bag_of_words", verdict.contenders[0])):
        gain = costs[role].gain
        assert gain is not None
        assert (gain.gain, gain.interval, gain.level) == (member.gain, member.interval, member.level)


def test_a_cheaper_contender_that_is_worse_is_not_named() -> None:
    assert all(cost.gain is None or not cost.gain.not_worse for cost in proven().costs)
    assert reason(proven(), "cost: the candidate is the cheapest") == (
        "cost: the candidate is the cheapest of the contenders that are not shown to be worse than it: 7.60 for 1,000 "
        "requests a month over 10 months"
    )


def test_the_cheapest_that_is_not_shown_to_be_worse_may_still_be_inferior() -> None:
    verdict = verdict_of(
        simulation_of(num_rows=300, candidate=0.78, contenders={"bag_of_words": 0.76, "centroid": 0.3})
    )
    text = reason(verdict, "cost: bag_of_words is the cheapest contender that is not shown to be worse than")
    assert verdict.winner == "candidate"
    assert "so it is not shown to be non-inferior (limit -1.00)" in text
    assert "instead of" in text
    assert reason(verdict, "cost: no contender that is non-inferior to the candidate costs less than it")


def test_a_contender_within_the_margin_is_non_inferior_even_if_it_is_worse() -> None:
    simulation = simulation_of()
    wide = protocol_of(simulation).model_copy(update={"non_inferiority_margin": 0.3})
    verdict = decide(inputs_of_tables(simulation, tables_of(simulation)), protocol=wide)
    assert verdict.winner == "candidate"
    assert reason(verdict, "cost: the candidate is the cheapest of the contenders")
    text = reason(verdict, "cost: bag_of_words is the cheapest contender that is non-inferior to the candidate: 0.20")
    assert "instead of 7.60" in text
    assert "so it is non-inferior (limit -30.00), although it is worse" in text


def test_a_difference_within_the_error_of_the_measurement_is_stated() -> None:
    noisy = on_cpu(SECONDS | {"candidate": (480.0,) * 5, "incumbent": (1.0, 999.0, 500.0, 400.0, 580.0)})
    simulation = simulation_of(num_rows=300, candidate=0.7, contenders={})
    verdict = verdict_of(simulation, costs=noisy, training=TrainingUsage())
    assert verdict.winner == "incumbent"
    text = reason(verdict, "cost: the candidate is the cheapest contender that is not shown to be worse than")
    assert "4.80 for 1,000 requests a month over 10 months, instead of 4.96 (difference -" in text
    assert "so it is not shown to cost less)" in text


def test_a_missing_price_is_named_and_its_contender_is_never_the_cheapest() -> None:
    tokens = Tokens("m at https://host/v1", (1000.0,) * 5, (100.0,) * 5)
    costs = {**on_cpu(SECONDS), "bag_of_words": ServingUsage((0.1,) * 5, tokens=tokens)}
    verdict = verdict_of(simulation_of(num_rows=300, contenders={"bag_of_words": 0.78, "centroid": 0.3}), costs=costs)
    endpoint = costs_of(verdict)["bag_of_words"]
    assert (endpoint.total, endpoint.interval, endpoint.tokens, endpoint.difference) == (None, None, None, None)
    assert endpoint.gain is not None
    assert reason(verdict, "the cost of bag_of_words") == (
        "the cost of bag_of_words is not assessable: evaluation.endpoint is not m at https://host/v1"
    )
    assert "with a known cost" in reason(verdict, "cost: ")


def test_equal_costs_are_stated_once() -> None:
    simulation = simulation_of(candidate=0.7, serving={"min_replicas": 1})
    verdict = verdict_of(simulation, training=TrainingUsage())
    assert {cost.total for cost in verdict.costs} == {730 * 10 * 3.6}
    assert verdict.cost_ratio == (1, 1, 1)
    assert [text for text in verdict.reasons if "cost" in text] == [
        "cost: all contenders cost the same: about 26,280.00 for 1,000 requests a month over 10 months"
    ]


def test_equal_costs_are_stated_with_the_costs_that_are_not_known() -> None:
    tokens = Tokens("m at https://host/v1", (1000.0,) * 5, (100.0,) * 5)
    costs = {**on_cpu(SECONDS), "bag_of_words": ServingUsage((0.1,) * 5, tokens=tokens)}
    verdict = verdict_of(simulation_of(candidate=0.7, serving={"min_replicas": 1}), costs=costs)
    assert reason(verdict, "cost: ").startswith("cost: all contenders with a known cost cost the same: about 26,281.20")
    assert reason(verdict, "the cost of bag_of_words is not assessable")
    assert not any("cheapest" in text for text in verdict.reasons)


def test_a_contender_that_costs_the_same_as_the_selected_model_is_named() -> None:
    equal = on_cpu(SECONDS | {"candidate": SECONDS["incumbent"]})
    verdict = verdict_of(simulation_of(candidate=0.7), costs=equal, training=TrainingUsage())
    assert verdict.winner == "incumbent"
    assert reason(verdict, "cost: ") == (
        "cost: the incumbent costs about the same as the candidate: 5.00 for 1,000 requests a month over 10 months; no "
        "contender that is not shown to be worse costs less"
    )


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [((), None), ((5.0,), None), ((1000.0, 1000.8), 1000.4), ((1000.0, 1001.1), None), ((0.0, 0.0), 0.0)],
)
def test_costs_are_the_same_within_a_thousandth(amounts: tuple[float, ...], expected: float | None) -> None:
    assert common_cost(amounts) == expected


def test_a_contender_that_is_cheaper_by_less_than_a_thousandth_is_not_named() -> None:
    (incumbent, *others) = verdict_of(simulation_of(candidate=0.7), training=TrainingUsage()).costs
    assert incumbent.gain is None
    for ratio, role in ((0.9995, "incumbent"), (0.998, others[0].role)):
        costs = (
            incumbent.model_copy(update={"total": 438.0}),
            others[0].model_copy(update={"total": 438.0 * ratio}),
        )
        cheapest = cheapest_of(costs, lambda _: True)
        assert cheapest is not None
        assert cheapest.role == role


def test_the_cost_does_not_change_the_outcome() -> None:
    prices = ({"price_per_cpu_hour": 3.6}, {"price_per_cpu_hour": 3.6e-6})
    verdicts = [verdict_of(simulation_of(cost=price)) for price in prices]
    assert verdicts[0].outcome == verdicts[1].outcome
    assert verdicts[0].cost_ratio == pytest.approx(verdicts[1].cost_ratio)


def test_without_prices_or_measurements_there_are_no_totals() -> None:
    assert verdict_of(replace(simulation_of(), evaluation={})).costs == ()
    unmeasured = verdict_of(simulation_of(), costs=None)
    assert unmeasured.costs == ()
    assert not any(text.startswith("cost: ") for text in unmeasured.reasons)


def test_no_contender_is_recommended_for_its_cost_if_the_splits_leak() -> None:
    verdict = verdict_of(simulation_of(), leaks=("a leak",))
    assert not any("cheapest" in text for text in verdict.reasons)


def test_a_hybrid_has_the_training_of_a_candidate_that_is_its_part_and_only_then() -> None:
    hybrid = {"hybrid": {"by": "group", "column": "sex"}, "cost": COST}
    simulation = Simulation(
        num_rows=4000, candidate=0.86, by_group={"female": 0.55}, gates=False, costs=on_cpu(SECONDS),
        evaluation=hybrid, routing=Routing("group", "sex", ("male", "unstated"), None),
    )  # fmt: skip
    inputs = inputs_of_tables(simulation, tables_of(simulation))
    assert inputs.hybrid is not None
    with_candidate = costs_of(decide(inputs, protocol=protocol_of(simulation)))["hybrid"]
    assert with_candidate.training == pytest.approx(3.6)
    assert 4.0 < (with_candidate.replicas or 0) < 5.0  # each part answers a share of the rows
    without = replace(inputs, hybrid=replace(inputs.hybrid, second="bag_of_words", best_part="incumbent"))
    assert costs_of(decide(without, protocol=protocol_of(simulation)))["hybrid"].training == 0
