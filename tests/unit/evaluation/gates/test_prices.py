"""Tests of the cost of serving at a volume: replicas, tokens, missing prices, and the ratio of two
costs."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.evaluation import CostConfig, EvaluationConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.cost import ServingUsage, Tokens, TrainingUsage
from tailorbird.evaluation.gates.prices import (
    CostTerms,
    Ratio,
    compare_costs,
    cost_unit,
    yearly_cost,
)

VOLUME: dict[str, Any] = {"value_of_correct": 0.5, "requests_per_month": 1000}
TERMS = CostTerms(**VOLUME, price_per_cpu_hour=0.36)
ON_GPU = CostTerms(**VOLUME, price_per_cpu_hour=0.36, price_per_gpu_hour=3.6, gpus_per_replica=1)
ENDPOINT = "m at https://host/v1"
CHEAP = ServingUsage((1.0, 1.1, 0.9, 1.0, 1.0))
DEAR = ServingUsage((4.0, 4.4, 3.6, 4.0, 4.0))
TOKENS = Tokens(ENDPOINT, (100_000.0,) * 5, (20_000.0,) * 5)


def terms(base: CostTerms = TERMS, **changes: Any) -> CostTerms:
    return CostTerms.model_validate(base.model_dump() | changes)


def on_cpu(seconds: float) -> ServingUsage:
    return ServingUsage((seconds,) * 5)


ALWAYS = terms(min_replicas=2, cpus_per_replica=3)
CALLS = ServingUsage((10.0,) * 5, tokens=TOKENS)
ONE_CALLING: dict[str, Any] = {"endpoint": ENDPOINT, "min_replicas": 1}
HOURS = 730 * 12


def total(usage: ServingUsage, prices: CostTerms = TERMS) -> float:
    """Return the cost of serving for a year."""
    return float(yearly_cost(usage, terms=prices).serving.mean())


def ratio_of(
    incumbent: ServingUsage,
    candidate: ServingUsage,
    *,
    prices: CostTerms | None = None,
    alpha: float = 0.05,
) -> Ratio | None:
    costs = {"incumbent": incumbent, "candidate": candidate}
    return compare_costs(costs, terms=prices, alpha=alpha).ratio


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        # 500 CPU-seconds per 1,000 rows are 6,000 in a year of 12,000 rows, at 0.0001 each. A
        # replica with two cores is busy for half of the time, and costs twice as much.
        (on_cpu(500.0), TERMS, 0.60),
        (on_cpu(500.0), terms(cpus_per_replica=2), 0.60),
        # 2 replicas with 3 cores have 15,768,000 CPU-seconds a month. Above them, busy time is
        # paid; within them, nothing is added.
        (on_cpu(500.0), ALWAYS, 2 * HOURS * 3 * 0.36),
        (on_cpu(2 * 15_768_000.0), ALWAYS, 2 * 2 * HOURS * 3 * 0.36),
        # 300 GPU-seconds and 20 CPU-seconds per 1,000 rows: 3,600 s of replicas in a year, with
        # one core and one GPU. Half a GPU is busy for twice as long, and its core is paid then.
        (ServingUsage((20.0,) * 5, (300.0,) * 5), ON_GPU, 3.6 + 0.36),
        (ServingUsage((300.0,) * 5, (20.0,) * 5), ON_GPU, 3.6 + 0.36),
        (
            ServingUsage((20.0,) * 5, (300.0,) * 5),
            terms(ON_GPU, gpus_per_replica=0.5),
            3.6 + 2 * 0.36,
        ),
        # 12 times 100,000 input and 20,000 output tokens; 120 CPU-seconds.
        (CALLS, terms(endpoint=ENDPOINT, token_prices=(0.001, 0.004)), 12 * 0.18 + 0.012),
        # The replicas that call an endpoint have no GPU.
        (CALLS, terms(ON_GPU, token_prices=(0, 0), **ONE_CALLING), HOURS * 0.36),
        (
            ServingUsage((10.0,) * 5, (10.0,) * 5),
            terms(ON_GPU, token_prices=(0, 0), **ONE_CALLING),
            HOURS * (0.36 + 3.6),
        ),
    ],
)
def test_the_cost_of_a_year(usage: ServingUsage, prices: CostTerms, expected: float) -> None:
    assert total(usage, prices) == pytest.approx(expected)


def test_the_prices_of_the_version_apply_if_the_recipe_does_not_name_its_endpoint() -> None:
    usage = ServingUsage((10.0,) * 5, tokens=replace(TOKENS, prices=(0.001, 0.004)))
    expected = 12 * (0.10 + 0.08) + 0.012
    other = terms(endpoint="other at https://host/v1", token_prices=(9, 9))
    for prices in (TERMS, other, terms(endpoint=ENDPOINT)):
        assert yearly_cost(usage, terms=prices).missing == ()
        assert total(usage, prices) == pytest.approx(expected)
    named = terms(endpoint=ENDPOINT, token_prices=(0.002, 0.008))  # the recipe has newer prices
    assert total(usage, named) == pytest.approx(2 * (expected - 0.012) + 0.012)


def test_the_replicas_of_an_endpoint_have_no_gpu() -> None:
    prices = terms(ON_GPU, endpoint=ENDPOINT, token_prices=(0, 0), min_replicas=1)
    assert total(ServingUsage((10.0,) * 5, tokens=TOKENS), prices) == pytest.approx(730 * 12 * 0.36)
    assert total(ServingUsage((10.0,) * 5, (10.0,) * 5), prices) == pytest.approx(
        730 * 12 * (0.36 + 3.6)
    )


@pytest.mark.parametrize(
    ("changes", "usage", "missing"),
    [
        (
            {"price_per_cpu_hour": None},
            on_cpu(1.0),
            "evaluation.cost.price_per_cpu_hour is not set",
        ),
        (
            {"gpus_per_replica": 1},
            ServingUsage((1.0,) * 5, (1.0,) * 5),
            "price_per_gpu_hour is not set",
        ),
        (
            {"gpus_per_replica": 1, "price_per_gpu_hour": 1},
            on_cpu(1.0),
            "serving.gpus_per_replica has changed",
        ),
        (
            {"price_per_gpu_hour": 1},
            ServingUsage((1.0,) * 5, (1.0,) * 5),
            "serving.gpus_per_replica has changed",
        ),
        (
            {"endpoint": "other at https://host/v1", "token_prices": (1, 1)},
            CALLS,
            "evaluation.endpoint has no prices for m at https://host/v1",
        ),
        (
            {"endpoint": ENDPOINT, "token_prices": (1, 1)},
            ServingUsage((1.0,) * 5, tokens=Tokens(ENDPOINT, (), ())),
            "m at https://host/v1 does not report its tokens",
        ),
        (
            {},
            CALLS,
            "evaluation.endpoint has no prices for m at https://host/v1",
        ),
    ],
)
def test_a_missing_price_is_named_and_never_0(
    changes: dict[str, Any], usage: ServingUsage, missing: str
) -> None:
    prices = terms(**changes)
    [phrase] = yearly_cost(usage, terms=prices).missing
    assert missing in phrase
    known = ServingUsage((1.0,) * 5, (1.0,) * 5 if prices.gpus_per_replica else None)
    costs = compare_costs({"incumbent": known, "candidate": usage}, terms=prices, alpha=0.05)
    assert (costs.ratio, costs.net) == (None, None)
    assert phrase in costs.missing


def test_the_training_is_priced_by_what_it_used_over_the_months_of_the_horizon() -> None:
    used = TrainingUsage(cpu_s=7200, gpu_s=3600)
    on_gpu = ServingUsage((1.0,) * 5, (1.0,) * 5)
    assert yearly_cost(on_gpu, terms=ON_GPU, training=used).training == pytest.approx(3.60 + 0.72)
    assert yearly_cost(CHEAP, terms=terms(price_per_cpu_hour=None)).missing_for_training == ()
    used = TrainingUsage(cpu_s=7200)
    cost = yearly_cost(CHEAP, terms=terms(), training=used)
    assert cost.training == pytest.approx(0.72)
    assert cost.serving.mean() == pytest.approx(total(CHEAP))


def test_without_the_price_of_the_training_there_is_a_ratio_and_no_net() -> None:
    costs = {"incumbent": DEAR, "candidate": CHEAP}
    compared = compare_costs(costs, terms=TERMS, alpha=0.05, training=TrainingUsage(gpu_s=1))
    assert compared.ratio == pytest.approx((0.25,) * 3)
    assert (compared.net, compared.missing) == (
        None,
        ("evaluation.cost.price_per_gpu_hour is not set",),
    )


def test_costs_that_were_not_measured_are_not_compared() -> None:
    for costs in (None, {"candidate": CHEAP}):
        compared = compare_costs(costs, terms=TERMS, alpha=0.05)
        assert (compared.ratio, compared.net, compared.missing) == (
            None,
            None,
            ("the serving cost is not measured",),
        )


def test_models_that_were_measured_in_different_rounds_are_refused() -> None:
    costs = {"incumbent": CHEAP, "candidate": ServingUsage((1.0,) * 6)}
    with pytest.raises(ValueError, match=r"candidate and incumbent have \[6, 5\] rounds"):
        compare_costs(costs, terms=None, alpha=0.05)


def test_the_terms_have_the_replicas_of_the_recipe_and_the_prices_of_the_endpoint() -> None:
    serving = ServingConfig(
        autoscaling={"min_replicas": 2, "max_replicas": 3}, cpus_per_replica=4, gpus_per_replica=0.5
    )
    endpoint = EndpointConfig(url="https://host/v1", model="m", prices=(0.001, 0.004))
    evaluation = EvaluationConfig(
        cost=CostConfig(**VOLUME, price_per_cpu_hour=0.36), endpoint=endpoint
    )
    from_recipe = CostTerms.from_recipe(evaluation, serving=serving)
    assert from_recipe is not None
    assert (
        from_recipe.min_replicas,
        from_recipe.cpus_per_replica,
        from_recipe.gpus_per_replica,
    ) == (
        2,
        4,
        0.5,
    )
    assert from_recipe.endpoint == ENDPOINT
    assert from_recipe.token_prices == (0.001, 0.004)
    assert CostTerms.from_recipe(EvaluationConfig(), serving=serving) is None


def test_without_prices_the_ratio_is_that_of_the_seconds_of_the_device_that_serves() -> None:
    assert ratio_of(DEAR, CHEAP) == pytest.approx((0.25,) * 3)
    incumbent = ServingUsage((1.0,) * 5, (4.0, 8.0, 4.0, 2.0, 4.0))
    candidate = ServingUsage((3.0,) * 5, (1.0, 2.0, 1.0, 0.5, 1.0))
    assert ratio_of(incumbent, candidate) == pytest.approx((0.25,) * 3)
    costs = {"incumbent": incumbent, "candidate": candidate}
    units = [
        cost_unit(costs, terms=None),
        cost_unit(costs, terms=ON_GPU),
        cost_unit(None, terms=ON_GPU),
    ]
    assert units == ["GPU-seconds", "price", None]


def test_seconds_of_different_devices_and_tokens_cannot_be_compared_without_prices() -> None:
    assert ratio_of(CHEAP, replace(CHEAP, gpu_s=CHEAP.cpu_s)) is None
    endpoint = ServingUsage((0.1,) * 5, tokens=TOKENS)
    assert ratio_of(CHEAP, endpoint) is None
    priced = terms(endpoint=ENDPOINT, token_prices=(0.001, 0.004))
    ratio = ratio_of(CHEAP, endpoint, prices=priced)
    assert ratio is not None
    assert ratio[1] > 1000


def test_costs_of_0_have_no_ratio() -> None:
    free = terms(price_per_cpu_hour=0, price_per_gpu_hour=1)
    assert ratio_of(DEAR, CHEAP, prices=free) is None


def test_the_interval_of_the_ratio_is_students_t_on_logarithms() -> None:
    incumbent = ServingUsage((1.0,) * 5)
    candidate = ServingUsage(tuple(math.exp(x) for x in (-0.2, -0.1, 0.0, 0.1, 0.2)))
    half = 2.7764 * math.sqrt(0.025) / math.sqrt(5)
    ratio = ratio_of(incumbent, candidate)
    wider = ratio_of(incumbent, candidate, alpha=0.01)
    assert ratio == pytest.approx((1, math.exp(-half), math.exp(half)), rel=1e-4)
    assert ratio is not None
    assert wider is not None
    assert wider[1] < ratio[1] < ratio[2] < wider[2]
