"""Tests of costs: measured resources, the price of a year, the ratio of two costs, and the yearly
net with its gate."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.cost import (
    RowTokens,
    ServingUsage,
    Tokens,
    TrainingUsage,
    shares_by_round,
    tokens_by_round,
)
from tailorbird.evaluation.gates.prices import (
    CostComparison,
    CostTerms,
    compare_costs,
    cost_gate,
    cost_unit,
    yearly_cost,
)
from tailorbird.evaluation.statistics.paired import Comparison, compare
from tests.unit.evaluation.verdict.tables import models

TERMS = CostTerms(value_of_correct=0.5, requests_per_month=1000, price_per_cpu_hour=0.36)
ENDPOINT = "m at https://host/v1"
DEAR = ServingUsage((4.0, 4.4, 3.6, 4.0, 4.0))
CHEAP = ServingUsage((1.0, 1.1, 0.9, 1.0, 1.0))
CALLS = ServingUsage((10.0,) * 5, tokens=Tokens(ENDPOINT, (100_000.0,) * 5, (20_000.0,) * 5))
HOURS = 730 * 12


def terms(base: CostTerms = TERMS, **changes: Any) -> CostTerms:
    return CostTerms.model_validate(base.model_dump() | changes)


def used(cpu_s: float, gpu_s: float | None = None) -> ServingUsage:
    return ServingUsage((cpu_s,) * 5, None if gpu_s is None else (gpu_s,) * 5)


ON_GPU = terms(price_per_gpu_hour=3.6, gpus_per_replica=1)
PRICED = terms(token_prices={ENDPOINT: (0.001, 0.004)})
ALWAYS = terms(min_replicas=2, cpus_per_replica=3)
ONE_CALLING = terms(ON_GPU, token_prices={ENDPOINT: (0, 0)}, min_replicas=1)


def compared(
    incumbent: ServingUsage, candidate: ServingUsage, prices: CostTerms | None = None, **fields: Any
) -> CostComparison:
    costs = {"incumbent": incumbent, "candidate": candidate}
    return compare_costs(costs, terms=prices, **({"alpha": 0.05} | fields))


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        # 500 CPU-seconds per 1,000 rows are 6,000 in a year of 12,000 rows, at 0.0001 each. A
        # replica with two cores is busy for half of the time, and costs twice as much.
        (used(500), terms(cpus_per_replica=2), 0.60),
        # 2 replicas with 3 cores have 15,768,000 CPU-seconds a month. Above them, busy time is
        # paid; within them, nothing is added.
        (used(500), ALWAYS, 2 * HOURS * 3 * 0.36),
        (used(2 * 15_768_000), ALWAYS, 2 * 2 * HOURS * 3 * 0.36),
        # 300 GPU-seconds and 20 CPU-seconds per 1,000 rows: 3,600 s of replicas in a year, with
        # one core and one GPU. Half a GPU is busy for twice as long, and its core is paid then.
        (used(20, 300), ON_GPU, 3.6 + 0.36),
        (used(300, 20), ON_GPU, 3.6 + 0.36),
        (used(20, 300), terms(ON_GPU, gpus_per_replica=0.5), 3.6 + 2 * 0.36),
        # 12 times 100,000 input and 20,000 output tokens; 120 CPU-seconds.
        (CALLS, PRICED, 12 * 0.18 + 0.012),
        # The replicas that call an endpoint have no GPU.
        (CALLS, ONE_CALLING, HOURS * 0.36),
    ],
)
def test_the_cost_of_a_year(usage: ServingUsage, prices: CostTerms, expected: float) -> None:
    assert yearly_cost(usage, terms=prices).serving.mean() == pytest.approx(expected)


def test_the_prices_of_the_version_apply_if_the_recipe_does_not_name_its_endpoint() -> None:
    assert CALLS.tokens is not None
    usage = replace(CALLS, tokens=replace(CALLS.tokens, prices=(0.001, 0.004)))
    other = terms(token_prices={"other at https://host/v1": (9, 9)})
    newer = terms(token_prices={ENDPOINT: (0.002, 0.008)})
    for prices, factor in (
        (other, 1),
        (terms(token_prices={ENDPOINT: None}), 1),
        (newer, 2),
    ):
        cost = yearly_cost(usage, terms=prices)
        assert cost.missing == ()
        assert cost.serving.mean() == pytest.approx(factor * 12 * 0.18 + 0.012)


@pytest.mark.parametrize(
    ("changes", "usage", "missing"),
    [
        ({"price_per_cpu_hour": None}, used(1), "price_per_cpu_hour"),
        ({"gpus_per_replica": 1}, used(1, 1), "price_per_gpu_hour"),
        ({"gpus_per_replica": 1, "price_per_gpu_hour": 1}, used(1), "gpus_per_replica"),
        ({"price_per_gpu_hour": 1}, used(1, 1), "gpus_per_replica"),
        ({"token_prices": {"other at https://host/v1": (1, 1)}}, CALLS, ENDPOINT),
        (
            {"token_prices": {ENDPOINT: (1, 1)}},
            replace(CALLS, tokens=Tokens(ENDPOINT, (), ())),
            "does not report its tokens",
        ),
    ],
)
def test_a_missing_price_is_named_and_never_0(
    changes: dict[str, Any], usage: ServingUsage, missing: str
) -> None:
    prices = terms(**changes)
    [phrase] = yearly_cost(usage, terms=prices).missing
    assert missing in phrase
    known = used(1, 1 if prices.gpus_per_replica else None)
    costs = compared(known, usage, prices)
    assert (costs.ratio, costs.net) == (None, None)
    assert phrase in costs.missing


def test_the_training_is_priced_by_what_it_used() -> None:
    training = TrainingUsage(cpu_s=7200, gpu_s=3600)
    cost = yearly_cost(used(1, 1), terms=ON_GPU, training=training)
    assert cost.training == pytest.approx(3.60 + 0.72)
    without_price = terms(price_per_cpu_hour=None)
    assert yearly_cost(CHEAP, terms=without_price).missing_for_training == ()
    unknown = compared(DEAR, CHEAP, TERMS, training=TrainingUsage(gpu_s=1))
    assert unknown.ratio == pytest.approx((0.25,) * 3)
    assert unknown.net is None
    assert "price_per_gpu_hour" in unknown.missing[0]


def test_costs_of_other_rounds_are_refused_and_those_that_were_not_measured_are_not_compared() -> (
    None
):
    for costs in (None, {"candidate": CHEAP}):
        unknown = compare_costs(costs, terms=TERMS, alpha=0.05)
        assert (unknown.ratio, unknown.net, len(unknown.missing)) == (None, None, 1)
    with pytest.raises(ValueError, match=r"\[6, 5\] rounds"):
        compared(CHEAP, ServingUsage((1.0,) * 6))


def test_the_terms_have_the_replicas_of_the_recipe_and_the_prices_of_the_endpoint() -> None:
    serving = ServingConfig(
        autoscaling={"min_replicas": 2, "max_replicas": 3},
        cpus_per_replica=4,
        gpus_per_replica=1,
    )
    prices = {"prices": (0.001, 0.004)}
    content = {
        "cost": {"value_of_correct": 0.5, "requests_per_month": 1000, "price_per_cpu_hour": 0.36},
        "contenders": {"hosted": {"endpoint": {"url": "https://host/v1", "model": "m", **prices}}},
    }
    replicas = {"min_replicas": 2, "cpus_per_replica": 4, "gpus_per_replica": 1.0}
    evaluation = EvaluationConfig.model_validate(content)
    assert CostTerms.from_recipe(evaluation, serving=serving) == terms(PRICED, **replicas)
    assert CostTerms.from_recipe(EvaluationConfig(), serving=serving) is None


def test_without_prices_the_ratio_is_that_of_the_seconds_of_the_device_that_serves() -> None:
    assert compared(DEAR, CHEAP).ratio == pytest.approx((0.25,) * 3)
    first = ServingUsage((1.0,) * 5, (4.0, 8.0, 4.0, 2.0, 4.0))
    second = ServingUsage((3.0,) * 5, (1.0, 2.0, 1.0, 0.5, 1.0))
    assert compared(first, second).ratio == pytest.approx((0.25,) * 3)
    costs = {"incumbent": first, "candidate": second}
    assert cost_unit(costs, terms=None) == "GPU-seconds"
    assert cost_unit(costs, terms=ON_GPU) == "price"
    assert cost_unit(None, terms=ON_GPU) is None


def test_seconds_of_different_devices_tokens_and_costs_of_0_have_no_ratio() -> None:
    assert compared(CHEAP, replace(CHEAP, gpu_s=CHEAP.cpu_s)).ratio is None
    assert compared(CHEAP, CALLS).ratio is None
    free = terms(price_per_cpu_hour=0, price_per_gpu_hour=1)
    assert compared(DEAR, CHEAP, free).ratio is None
    ratio = compared(CHEAP, CALLS, PRICED).ratio
    assert ratio is not None
    assert ratio[1] > 1000


def test_the_interval_of_the_ratio_is_students_t_on_logarithms() -> None:
    candidate = ServingUsage(tuple(map(math.exp, (-0.2, -0.1, 0.0, 0.1, 0.2))))
    for alpha, quantile in ((0.05, 2.7764), (0.01, 4.6041)):
        half = quantile * math.sqrt(0.025 / 5)
        ratio = compared(used(1), candidate, alpha=alpha).ratio
        assert ratio == pytest.approx((1, math.exp(-half), math.exp(half)), rel=1e-4)


ONES = (1.0,) * 5


@pytest.mark.parametrize("amount", [-1.0, math.inf])
def test_amounts_that_are_negative_or_not_finite_are_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="seconds of training"):
        TrainingUsage(cpu_s=amount)
    with pytest.raises(ValueError, match="CPU-seconds"):
        ServingUsage((1.0,) * 4 + (amount,))
    with pytest.raises(ValueError, match="output tokens"):
        Tokens("m", ONES, (1.0,) * 4 + (amount,))
    with pytest.raises(ValueError, match="prices of tokens"):
        Tokens("m", ONES, ONES, prices=(1.0, amount))


@pytest.mark.parametrize(
    ("cpu_s", "gpu_s", "tokens"),
    [
        (ONES[:4], None, None),
        ((1.0, 1.0, 1.0, 1.0, 0.0), None, None),
        (ONES, ONES[:4], None),
        (ONES, None, (ONES, ONES[:4])),
    ],
)
def test_all_resources_are_positive_in_the_same_five_or_more_rounds(
    cpu_s: tuple[float, ...], gpu_s: tuple[float, ...] | None, tokens: Any
) -> None:
    with pytest.raises(ValueError, match=r"rounds|CPU-seconds"):
        ServingUsage(cpu_s, gpu_s, tokens and Tokens("m", *tokens))


def test_the_tokens_of_a_round_are_those_of_a_part_of_the_rows() -> None:
    rows = RowTokens("m", (10,) * 6 + (20,) * 4, (1, 2) * 5, prices=(1.0, 2.0))
    tokens = tokens_by_round(rows)
    assert tokens.input == (10_000, 10_000, 10_000, 20_000, 20_000)
    assert tokens.output == (1_500, 1_500, 1_500, 1_500, 1_500)
    assert (tokens.endpoint, tokens.prices, tokens.reported) == ("m", (1.0, 2.0), True)
    assert (
        tokens_by_round(RowTokens("m", (1, 3), (1, 1))).input == (2_000,) * 5
    )  # fewer rows than rounds


def test_the_share_of_a_round_counts_rows_with_their_lengths() -> None:
    answered = np.array([True, False] * 4 + [True, True])
    lengths = np.array([30.0, 10.0] * 4 + [30.0, 10.0])
    assert shares_by_round(answered, lengths=lengths) == (0.75, 0.75, 0.75, 0.75, 1.0)
    assert shares_by_round(answered[-3:], lengths=np.ones(3)) == (2 / 3,) * 5
    assert shares_by_round(np.ones(10, dtype=bool), lengths=np.arange(10.0)) == (1.0,) * 5


SAME = used(2.0)


def comparison(only_candidate: int = 60, only_incumbent: int = 20) -> Comparison:
    """Return a comparison on 1,000 rows; the default gain is 4 points."""
    both = 900 - only_candidate - only_incumbent
    incumbent, candidate = models(both, only_candidate, only_incumbent, 100)
    return compare(candidate, other=incumbent, metric="accuracy", alpha=0.05)


MAIN = comparison()


def gate_of(main: Comparison = MAIN, *, training: float = 0.0) -> Gate:
    """Return the cost gate at a price of the training: at 0.36 per hour, 10,000 s cost 1."""
    return cost_gate(
        main, cost=compared(SAME, SAME, TERMS, training=TrainingUsage(training * 10_000))
    )


def test_the_interval_combines_those_of_the_gain_and_of_the_saving() -> None:
    cost = compared(ServingUsage((1e5, 2e5, 3e5, 2e5, 2e5)), used(1e5), TERMS)
    assert cost.net is not None
    # 100,000 s per 1,000 rows, with a standard deviation of 70,711 s over five rounds; 12,000 rows
    # at 0.0001 a second.
    saving = (120, 2.7764 * 84.853 / math.sqrt(5))
    assert (cost.net.saving, cost.net.half_saving) == pytest.approx(saving, rel=1e-4)
    interval = (360 - math.hypot(60, 105.36), 360 + math.hypot(120, 105.36))
    assert cost.net.interval(0.04, gain_interval=(0.03, 0.06)) == pytest.approx(interval, rel=1e-3)


def test_an_imprecise_saving_leaves_the_gate_open_and_no_rows_decide_it() -> None:
    cost = compared(ServingUsage((1e5, 9e5, 1e5, 9e5, 1e5)), used(4e5), TERMS)
    bound = cost_gate(MAIN, cost=cost).bounds[0]
    assert (bound.state, bound.rows_needed) == (State.NOT_ASSESSABLE, None)


def test_the_bound_is_the_yearly_net_with_the_rows_needed_at_the_same_estimate() -> None:
    gate = gate_of(training=200)
    [bound] = gate.bounds
    low, high = MAIN.interval
    assert bound.estimate == pytest.approx(6000 * 0.04 - 200)
    assert bound.interval == pytest.approx((6000 * low - 200, 6000 * high - 200))
    assert (bound.limit, bound.n) == (0, 1000)
    assert bound.rows_needed == round(1000 * ((high - low) / 2 * 6000 / 40) ** 2)
    assert "gain +240.00, training -200.00, serving +0.00 (+- 0.00)" in gate.note


def test_the_gate_passes_at_the_lower_end_of_the_gain_and_fails_at_the_upper_end() -> None:
    low, high = (6000 * end for end in MAIN.interval)
    assert gate_of(training=low - 1).state is State.PASSES
    assert gate_of(training=low + 1).state is State.NOT_ASSESSABLE
    assert gate_of(training=high - 1).state is State.NOT_ASSESSABLE
    assert gate_of(training=high + 1).state is State.FAILS
    at_0 = replace(MAIN, gain=-0.005, interval=(-0.01, 0.0))
    assert gate_of(at_0).state is State.FAILS
