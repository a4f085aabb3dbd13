"""Tests of the yearly net and the three states of the cost gate."""

import math
from dataclasses import replace

import pytest

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.cost import ServingUsage, TrainingUsage
from tailorbird.evaluation.gates.prices import CostComparison, CostTerms, compare_costs, cost_gate
from tailorbird.evaluation.statistics.paired import Comparison, compare
from tests.unit.evaluation.verdict.tables import models

SAME = ServingUsage((2.0,) * 5)
TERMS = CostTerms(value_of_correct=0.5, requests_per_month=1000, price_per_cpu_hour=0.36)


def comparison(only_candidate: int = 60, only_incumbent: int = 20) -> Comparison:
    """Return a comparison on 1,000 rows; the default gain is 4 points."""
    both = 900 - only_candidate - only_incumbent
    incumbent, candidate = models(both, only_candidate, only_incumbent, 100)
    return compare(candidate, other=incumbent, metric="accuracy", alpha=0.05)


MAIN = comparison()


def cost_of(
    incumbent: ServingUsage = SAME, candidate: ServingUsage = SAME, *, training_s: float = 0.0
) -> CostComparison:
    costs = {"incumbent": incumbent, "candidate": candidate}
    return compare_costs(costs, terms=TERMS, alpha=0.05, training=TrainingUsage(training_s))


def gate_of(main: Comparison = MAIN, *, training: float = 0.0) -> Gate:
    """Return the cost gate at a price of the training: at 0.36 per hour, 10,000 s cost 1."""
    return cost_gate(main, cost=cost_of(training_s=training * 10_000))


def test_the_yearly_net_is_the_value_minus_training_plus_the_saving_in_serving() -> None:
    cheap, dear = ServingUsage((1.0, 2.0, 3.0, 2.0, 2.0)), ServingUsage((502.0,) * 5)
    # 4 points of 12,000 rows at 0.5 are 240. Two CPU-hours are 0.72. 500 s more per 1,000 rows are
    # 6,000 s, or 0.60.
    for costs, saving in (((cheap, dear), -0.60), ((dear, cheap), 0.60)):
        net = cost_of(*costs, training_s=7200).net
        assert net is not None
        assert net.at(0.04) == pytest.approx(240 - 0.72 + saving)


def test_the_interval_combines_those_of_the_gain_and_of_the_saving() -> None:
    cost = cost_of(ServingUsage((1e5, 2e5, 3e5, 2e5, 2e5)), ServingUsage((1e5,) * 5))
    assert cost.net is not None
    # 100,000 s per 1,000 rows, with a standard deviation of 70,711 s over five rounds; 12,000 rows
    # at 0.0001 a second.
    saving = (120, 2.7764 * 84.853 / math.sqrt(5))
    assert (cost.net.saving, cost.net.half_saving) == pytest.approx(saving, rel=1e-4)
    interval = (360 - math.hypot(60, 105.36), 360 + math.hypot(120, 105.36))
    assert cost.net.interval(0.04, gain_interval=(0.03, 0.06)) == pytest.approx(interval, rel=1e-3)


def test_an_imprecise_saving_leaves_the_gate_open_and_no_rows_decide_it() -> None:
    cost = cost_of(ServingUsage((1e5, 9e5, 1e5, 9e5, 1e5)), ServingUsage((4e5,) * 5))
    bound = cost_gate(MAIN, cost=cost).bounds[0]
    assert (bound.state, bound.rows_needed) == (State.NOT_ASSESSABLE, None)


def test_the_bound_is_the_yearly_net_at_the_gain_and_at_both_ends_of_its_interval() -> None:
    gate = gate_of(training=36)
    [bound] = gate.bounds
    low, high = MAIN.interval
    assert bound.estimate == pytest.approx(6000 * 0.04 - 36)
    assert bound.interval == pytest.approx((6000 * low - 36, 6000 * high - 36))
    assert (bound.limit, bound.n) == (0, 1000)
    assert "gain +240.00, training -36.00, serving +0.00 (+- 0.00)" in gate.note


def test_the_gate_passes_at_the_lower_end_of_the_gain_and_fails_at_the_upper_end() -> None:
    low, high = (6000 * end for end in MAIN.interval)
    assert gate_of(training=low - 1).state is State.PASSES
    assert gate_of(training=low + 1).state is State.NOT_ASSESSABLE
    assert gate_of(training=high - 1).state is State.NOT_ASSESSABLE
    assert gate_of(training=high + 1).state is State.FAILS
    at_0 = replace(MAIN, gain=-0.005, interval=(-0.01, 0.0))
    assert gate_of(at_0).state is State.FAILS


def test_a_worse_candidate_passes_if_its_serving_saves_enough() -> None:
    cost = cost_of(ServingUsage((200_000.0,) * 5))
    assert cost_gate(comparison(20, 22), cost=cost).state is State.PASSES


def test_an_open_gate_reports_the_rows_needed_at_the_same_estimate() -> None:
    half = (MAIN.interval[1] - MAIN.interval[0]) / 2 * 6000
    [bound] = gate_of(training=200).bounds  # the gain is worth 240
    assert bound.rows_needed == round(1000 * (half / 40) ** 2)
