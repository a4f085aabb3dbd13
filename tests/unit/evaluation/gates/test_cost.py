"""Tests of the net benefit, the ratio of CPU times and the three states of the cost gate."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.config.evaluation import CostConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.cost import (
    CostRounds,
    ServingUsage,
    TrainingUsage,
    cost_gate,
    cost_ratio,
    net_benefit,
    price_of,
)
from tailorbird.evaluation.statistics.paired import (
    Comparison,
    PairedCounts,
    mcnemar_exact,
    mcnemar_midp,
    newcombe_paired_interval,
)


def on_cpu(*, incumbent: tuple[float, ...], candidate: tuple[float, ...]) -> CostRounds:
    return CostRounds(ServingUsage(incumbent), ServingUsage(candidate))


SAME = on_cpu(incumbent=(2.0,) * 5, candidate=(2.0,) * 5)
TERMS = CostConfig(value_of_correct=0.5, requests_per_month=1000, horizon_months=12, price_per_cpu_hour=0.36)


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
        p_value=mcnemar_midp(counts),
        p_exact=mcnemar_exact(counts),
        standard_error=None,
        num_units=n,
    )


def gate_of(
    main: Comparison, *, rounds: CostRounds = SAME, training_cpu_s: float = 0.0, terms: CostConfig = TERMS
) -> Gate:
    """Return the cost gate, by default with the prices `TERMS`."""
    benefit = net_benefit(terms, rounds=rounds, training=TrainingUsage(training_cpu_s), alpha=0.05)
    return cost_gate(main, benefit=benefit, horizon_months=terms.horizon_months)


def state(main: Comparison, *, rounds: CostRounds = SAME, training_cpu_s: float = 0.0) -> State:
    return gate_of(main, rounds=rounds, training_cpu_s=training_cpu_s).state


def test_the_net_benefit_is_the_value_minus_training_plus_the_saving_in_serving() -> None:
    expensive = on_cpu(incumbent=(1.0, 2.0, 3.0, 2.0, 2.0), candidate=(502.0,) * 5)
    # 4 points of 12,000 rows at 0.5 are 240. Two CPU-hours are 0.72. 500 s more per 1,000 rows are 6,000 s, or 0.60.
    benefit = net_benefit(TERMS, rounds=expensive, training=TrainingUsage(7200), alpha=0.05)
    assert benefit.at(0.04) == pytest.approx(240 - 0.72 - 0.60)
    cheaper = CostRounds(incumbent=expensive.candidate, candidate=expensive.incumbent)
    benefit = net_benefit(TERMS, rounds=cheaper, training=TrainingUsage(7200), alpha=0.05)
    assert benefit.at(0.04) == pytest.approx(240 - 0.72 + 0.60)


def test_the_interval_combines_those_of_the_gain_and_of_the_saving() -> None:
    rounds = on_cpu(incumbent=(1e5, 2e5, 3e5, 2e5, 2e5), candidate=(1e5,) * 5)
    benefit = net_benefit(TERMS, rounds=rounds, training=TrainingUsage(), alpha=0.05)
    # 100,000 s per 1,000 rows, with a standard deviation of 70,711 s over five rounds; 12,000 rows at 0.0001 a second.
    assert (benefit.saving, benefit.half_saving) == pytest.approx((120, 2.7764 * 84.853 / math.sqrt(5)), rel=1e-4)
    low, high = benefit.interval(0.04, of_gain=(0.03, 0.06))
    assert (low, high) == pytest.approx((360 - math.hypot(60, 105.36), 360 + math.hypot(120, 105.36)), rel=1e-3)


def test_an_imprecise_saving_leaves_the_gate_open_and_no_rows_decide_it() -> None:
    rounds = on_cpu(incumbent=(1e5, 9e5, 1e5, 9e5, 1e5), candidate=(4e5,) * 5)
    bound = gate_of(comparison(), rounds=rounds).bounds[0]
    assert (bound.state, bound.rows_needed) == (State.NOT_ASSESSABLE, None)


def test_the_bound_is_the_net_benefit_at_the_gain_and_at_both_ends_of_its_interval() -> None:
    main = comparison()
    gate = gate_of(main, training_cpu_s=360_000)
    bound = gate.bounds[0]
    assert bound.estimate == pytest.approx(6000 * 0.04 - 36)
    assert bound.interval == pytest.approx((6000 * main.interval[0] - 36, 6000 * main.interval[1] - 36))
    assert (bound.limit, bound.n) == (0, 1000)
    assert gate.note == (
        "over 12 months, in the recipe's currency: gain +240.00, training -36.00 for 100 CPU-hours, "
        "serving +0.00 (+- 0.00)"
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
        assert state(main, training_cpu_s=training * 10_000) is expected  # at 0.36 per hour, 10,000 s cost 1


def test_a_benefit_of_0_at_the_upper_end_fails() -> None:
    equal = replace(comparison(), gain=-0.005, interval=(-0.01, 0.0))
    assert state(equal) is State.FAILS


def test_a_worse_candidate_passes_if_its_serving_saves_enough() -> None:
    worse = comparison(only_candidate=20, only_incumbent=22)
    slow = on_cpu(incumbent=(200_000.0,) * 5, candidate=(2.0,) * 5)
    assert state(worse, rounds=slow) is State.PASSES


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


@pytest.mark.parametrize("training", [-1.0, math.nan, math.inf])
def test_an_invalid_training_time_is_refused(training: float) -> None:
    with pytest.raises(ValueError, match="training cpu_s"):
        state(comparison(), training_cpu_s=training)


@pytest.mark.parametrize(
    ("incumbent", "candidate"),
    [
        ((1.0,) * 4, (1.0,) * 4),
        ((1.0,) * 5, (1.0,) * 6),
        ((1.0,) * 5, (1.0, 1, 1, 1, 0)),
        ((math.nan,) * 5, (1.0,) * 5),
    ],
)
def test_rounds_must_be_paired_positive_and_at_least_five(
    incumbent: tuple[float, ...], candidate: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match=r"rounds|CPU-seconds"):
        on_cpu(incumbent=incumbent, candidate=candidate)


def test_a_slow_round_does_not_widen_the_interval_of_the_ratio() -> None:
    rounds = on_cpu(incumbent=(2.0, 4.0, 8.0, 2.0, 3.0), candidate=(1.0, 2.0, 4.0, 1.0, 1.5))
    estimate, interval = cost_ratio(rounds)
    assert estimate == pytest.approx(0.5)
    assert interval == pytest.approx((0.5, 0.5))


def test_the_interval_of_the_ratio_is_students_t_on_logarithms() -> None:
    rounds = on_cpu(incumbent=(1.0,) * 5, candidate=tuple(math.exp(x) for x in (-0.2, -0.1, 0.0, 0.1, 0.2)))
    estimate, (low, high) = cost_ratio(rounds)
    half = 2.7764 * math.sqrt(0.025) / math.sqrt(5)
    assert estimate == pytest.approx(1)
    assert (low, high) == pytest.approx((math.exp(-half), math.exp(half)), rel=1e-4)
    wider = cost_ratio(rounds, alpha=0.01)[1]
    assert wider[0] < low < high < wider[1]


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
    rounds = on_cpu(incumbent=(1.0,) * 5, candidate=(seconds,) * 5)
    gate = gate_of(main, rounds=rounds, training_cpu_s=training, terms=terms)
    low, high = gate.bounds[0].interval
    assert (gate.state is State.PASSES) == (low > 0)
    assert (gate.state is State.FAILS) == (high <= 0)


PER_GPU = TERMS.model_copy(update={"price_per_gpu_hour": 3.6})  # 0.001 per GPU-second, 0.0001 per CPU-second


def test_gpu_seconds_and_cpu_seconds_are_both_priced() -> None:
    rounds = CostRounds(ServingUsage((10.0,) * 5, (500.0,) * 5), ServingUsage((20.0,) * 5, (300.0,) * 5))
    benefit = net_benefit(PER_GPU, rounds=rounds, training=TrainingUsage(cpu_s=7200, gpu_s=3600), alpha=0.05)
    # 12,000 requests: 2,400 GPU-seconds less are 2.40, 120 CPU-seconds more are 0.012.
    assert benefit.saving == pytest.approx(2.40 - 0.012)
    assert benefit.training == pytest.approx(3.60 + 0.72)
    assert price_of(rounds.candidate, terms=PER_GPU) == pytest.approx(0.3 + 0.002)
    note = cost_gate(comparison(), benefit=benefit, horizon_months=12).note
    assert "training -4.32 for 1 GPU-hours and 2 CPU-hours" in note


def test_the_ratio_is_that_of_the_device_that_serves() -> None:
    gpu = CostRounds(
        ServingUsage((1.0,) * 5, (4.0, 8.0, 4.0, 2.0, 4.0)), ServingUsage((3.0,) * 5, (1.0, 2.0, 1.0, 0.5, 1.0))
    )
    assert cost_ratio(gpu)[0] == pytest.approx(0.25)
    assert cost_ratio(gpu)[1] == pytest.approx((0.25, 0.25))
    assert cost_ratio(on_cpu(incumbent=(1.0,) * 5, candidate=(3.0,) * 5))[0] == pytest.approx(3)


def test_gpu_seconds_without_a_price_are_refused() -> None:
    rounds = CostRounds(ServingUsage((1.0,) * 5, (2.0,) * 5), ServingUsage((1.0,) * 5, (1.0,) * 5))
    with pytest.raises(ValueError, match="price_per_gpu_hour"):
        net_benefit(TERMS, rounds=rounds, training=TrainingUsage(), alpha=0.05)
    with pytest.raises(ValueError, match="price_per_gpu_hour"):
        net_benefit(TERMS, rounds=SAME, training=TrainingUsage(gpu_s=1), alpha=0.05)
    with pytest.raises(ValueError, match="price_per_gpu_hour"):
        price_of(rounds.candidate, terms=TERMS)


def test_the_units_of_a_pair_cannot_differ() -> None:
    with pytest.raises(ValueError, match="the incumbent has GPU-seconds and the candidate CPU-seconds"):
        CostRounds(ServingUsage((1.0,) * 5, (2.0,) * 5), ServingUsage((1.0,) * 5))
    with pytest.raises(ValueError, match="5 rounds have CPU-seconds and 4 have GPU-seconds"):
        ServingUsage((1.0,) * 5, (2.0,) * 4)


def test_a_cpu_is_free_only_if_the_price_of_a_gpu_includes_it() -> None:
    prices = {"value_of_correct": 0.5, "requests_per_month": 1000, "price_per_cpu_hour": 0}
    with pytest.raises(ValueError, match="nothing has a price"):
        CostConfig.model_validate(prices)
    assert CostConfig.model_validate({**prices, "price_per_gpu_hour": 2}).price_per_gpu_hour == 2
