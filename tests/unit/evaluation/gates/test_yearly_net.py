"""Tests of the yearly net and the three states of the cost gate."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.cost import ServingCosts, ServingUsage, TrainingUsage
from tailorbird.evaluation.gates.prices import CostTerms, YearlyNet, compare_costs, cost_gate
from tailorbird.evaluation.statistics.paired import (
    Comparison,
    PairedCounts,
    mcnemar_midp,
    newcombe_paired_interval,
)


def on_cpu(*, incumbent: tuple[float, ...], candidate: tuple[float, ...]) -> ServingCosts:
    return {"incumbent": ServingUsage(incumbent), "candidate": ServingUsage(candidate)}


SAME = on_cpu(incumbent=(2.0,) * 5, candidate=(2.0,) * 5)
TERMS = CostTerms(value_of_correct=0.5, requests_per_month=1000, price_per_cpu_hour=0.36)


def comparison(n: int = 1000, *, only_candidate: int = 60, only_incumbent: int = 20) -> Comparison:
    """Return a comparison; the default gain is 4 points."""
    neither = n // 10
    both = n - only_candidate - only_incumbent - neither
    counts = PairedCounts(both, only_candidate, only_incumbent, neither)
    return Comparison(
        counts=counts,
        candidate_score=(both + only_candidate) / n,
        other_score=(both + only_incumbent) / n,
        gain=counts.gain,
        interval=newcombe_paired_interval(counts),
        lowest=newcombe_paired_interval(counts)[0],
        p_value=mcnemar_midp(counts),
        standard_error=None,
        num_units=n,
    )


def gate_of(
    main: Comparison,
    *,
    costs: ServingCosts = SAME,
    training_cpu_s: float = 0.0,
    terms: CostTerms = TERMS,
) -> Gate:
    """Return the cost gate, by default with the prices `TERMS`."""
    compared = compare_costs(costs, terms=terms, alpha=0.05, training=TrainingUsage(training_cpu_s))
    return cost_gate(main, cost=compared)


def state(main: Comparison, *, costs: ServingCosts = SAME, training_cpu_s: float = 0.0) -> State:
    return gate_of(main, costs=costs, training_cpu_s=training_cpu_s).state


def net_of(
    costs: ServingCosts, *, training_cpu_s: float = 0.0, terms: CostTerms = TERMS
) -> YearlyNet:
    net = compare_costs(costs, terms=terms, alpha=0.05, training=TrainingUsage(training_cpu_s)).net
    assert net is not None
    return net


def test_the_yearly_net_is_the_value_minus_training_plus_the_saving_in_serving() -> None:
    expensive = on_cpu(incumbent=(1.0, 2.0, 3.0, 2.0, 2.0), candidate=(502.0,) * 5)
    # 4 points of 12,000 rows at 0.5 are 240. Two CPU-hours are 0.72. 500 s more per 1,000 rows are
    # 6,000 s, or 0.60.
    assert net_of(expensive, training_cpu_s=7200).at(0.04) == pytest.approx(240 - 0.72 - 0.60)
    cheaper = {"incumbent": expensive["candidate"], "candidate": expensive["incumbent"]}
    assert net_of(cheaper, training_cpu_s=7200).at(0.04) == pytest.approx(240 - 0.72 + 0.60)


def test_the_interval_combines_those_of_the_gain_and_of_the_saving() -> None:
    net = net_of(on_cpu(incumbent=(1e5, 2e5, 3e5, 2e5, 2e5), candidate=(1e5,) * 5))
    # 100,000 s per 1,000 rows, with a standard deviation of 70,711 s over five rounds; 12,000 rows
    # at 0.0001 a second.
    assert (net.saving, net.half_saving) == pytest.approx(
        (120, 2.7764 * 84.853 / math.sqrt(5)), rel=1e-4
    )
    low, high = net.interval(0.04, of_gain=(0.03, 0.06))
    assert (low, high) == pytest.approx(
        (360 - math.hypot(60, 105.36), 360 + math.hypot(120, 105.36)), rel=1e-3
    )


def test_an_imprecise_saving_leaves_the_gate_open_and_no_rows_decide_it() -> None:
    costs = on_cpu(incumbent=(1e5, 9e5, 1e5, 9e5, 1e5), candidate=(4e5,) * 5)
    bound = gate_of(comparison(), costs=costs).bounds[0]
    assert (bound.state, bound.rows_needed) == (State.NOT_ASSESSABLE, None)


def test_the_bound_is_the_yearly_net_at_the_gain_and_at_both_ends_of_its_interval() -> None:
    main = comparison()
    gate = gate_of(main, training_cpu_s=360_000)
    bound = gate.bounds[0]
    assert bound.estimate == pytest.approx(6000 * 0.04 - 36)
    assert bound.interval == pytest.approx(
        (6000 * main.interval[0] - 36, 6000 * main.interval[1] - 36)
    )
    assert (bound.limit, bound.n) == (0, 1000)
    assert gate.note == (
        "a year, in the recipe's currency: gain +240.00, training -36.00, serving +0.00 (+- 0.00)"
    )


def test_the_gate_passes_at_the_lower_end_of_the_gain_and_fails_at_the_upper_end() -> None:
    main = comparison()
    low, high = (6000 * end for end in main.interval)
    for value, training, expected in [
        (low, low - 1, State.PASSES),
        (low, low + 1, State.NOT_ASSESSABLE),
        (high, high - 1, State.NOT_ASSESSABLE),
        (high, high + 1, State.FAILS),
    ]:
        assert value > 1
        assert (
            state(main, training_cpu_s=training * 10_000) is expected
        )  # at 0.36 per hour, 10,000 s cost 1


def test_a_net_of_0_at_the_upper_end_fails() -> None:
    equal = replace(comparison(), gain=-0.005, interval=(-0.01, 0.0))
    assert state(equal) is State.FAILS


def test_a_worse_candidate_passes_if_its_serving_saves_enough() -> None:
    worse = comparison(only_candidate=20, only_incumbent=22)
    slow = on_cpu(incumbent=(200_000.0,) * 5, candidate=(2.0,) * 5)
    assert state(worse, costs=slow) is State.PASSES


def test_an_open_gate_reports_the_rows_needed_at_the_same_estimate() -> None:
    main = comparison()
    gate = gate_of(main, training_cpu_s=2_000_000)  # training costs 200, the gain is 240
    half = (main.interval[1] - main.interval[0]) / 2 * 6000
    assert gate.bounds[0].rows_needed == round(1000 * (half / 40) ** 2)


def test_the_note_states_that_another_metric_is_priced_like_accuracy() -> None:
    main = comparison()
    other = replace(main, gain=0.05)
    assert "priced like a point of accuracy" in gate_of(other).note
    assert "priced like" not in gate_of(main).note


@given(
    st.integers(1, 300),
    st.integers(0, 300),
    st.floats(1e-300, 1e300),
    st.floats(0, 1e300),
    st.floats(1e-3, 1e3),
)
def test_the_whole_interval_determines_the_state(
    ours: int, theirs: int, value: float, training: float, seconds: float
) -> None:
    main = comparison(700, only_candidate=ours, only_incumbent=theirs)
    terms = TERMS.model_copy(update={"value_of_correct": value})
    costs = on_cpu(incumbent=(1.0,) * 5, candidate=(seconds,) * 5)
    gate = gate_of(main, costs=costs, training_cpu_s=training, terms=terms)
    low, high = gate.bounds[0].interval
    assert (gate.state is State.PASSES) == (low > 0)
    assert (gate.state is State.FAILS) == (high <= 0)


def test_idle_replicas_that_run_for_both_models_save_nothing() -> None:
    always = TERMS.model_copy(update={"min_replicas": 1})
    slow = on_cpu(incumbent=(200_000.0,) * 5, candidate=(2.0,) * 5)
    assert net_of(slow).saving == pytest.approx(239.9976)
    assert net_of(slow, terms=always).saving == 0


def test_a_missing_price_leaves_the_gate_open_and_is_named_once() -> None:
    unknown = TERMS.model_copy(update={"price_per_cpu_hour": None})
    gate = gate_of(comparison(), training_cpu_s=100, terms=unknown)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    assert gate.note == "evaluation.cost.price_per_cpu_hour is not set"
