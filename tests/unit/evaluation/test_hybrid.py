"""Tests of a hybrid's parts and routing rule, fitted on validation by group and as a cascade."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tailorbird.evaluation.gates.cost import RowTokens, ServingUsage, Tokens, tokens_by_round
from tailorbird.evaluation.hybrid import (
    FrozenHybrid,
    PartUsage,
    apply_routing,
    best_of_each_cost,
    fit_hybrid,
    hybrid_usage,
)
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.registry.hybrid_routing import NO_GROUP, Routing

CASCADE = "cascade"
BY_SEX = "sex"
SURE = np.linspace(0, 0.99, 100)
ALL = np.ones(100, dtype=np.bool_)
NONE = ~ALL


def answers(
    right: NDArray[np.bool_],
    *,
    sure: NDArray[np.float64] = SURE,
    sex: tuple[str, ...] = (),
    kind: str = "probe",
) -> Predictions:
    n = len(right)
    return Predictions(
        model=kind,
        row_ids=tuple(map(str, range(n))),
        labels=("yes",) * n,
        outputs=tuple("yes" if hit else "no" for hit in right),
        scores=right.astype(np.float64),
        confidences=sure,
        calibrated=sure,
        groups={"sex": sex} if sex else {},
    )


def cascade(**right: NDArray[np.bool_]) -> FrozenHybrid | None:
    """Return the cascade of models that are right on these rows: `incumbent` and `candidate` are
    `full` and `lora`, and each other role is its kind."""
    kinds = {"incumbent": "full", "candidate": "lora"}
    tables = {role: answers(rows, kind=kinds.get(role, role)) for role, rows in right.items()}
    return fit_hybrid(CASCADE, tables, metric="accuracy")


def test_the_cheap_part_of_a_cascade_answers_the_rows_on_which_it_is_confident_and_right() -> None:
    tables = {
        "incumbent": answers(np.arange(100) % 5 > 0, kind="full"),  # 80 rows right
        "candidate": answers(np.arange(100) % 5 > 1, kind="lora"),
        "bag_of_words": answers(
            SURE >= 0.45, kind="bag_of_words"
        ),  # right on its 55 most confident rows
    }
    hybrid = fit_hybrid(CASCADE, tables, metric="accuracy")
    assert hybrid is not None
    assert hybrid.parts == ("bag_of_words", "incumbent")
    # It is right on its most confident 50 rows. On the next 10 it is wrong on 5, and the incumbent
    # on 2.
    assert hybrid.share_to_second == 0.5
    assert hybrid.validation == pytest.approx(0.9)
    assert hybrid.routing.threshold == pytest.approx(0.495)  # halfway between two confidences
    first, second = (ModelPredictions(tables[role]) for role in hybrid.parts)
    assert (
        apply_routing(hybrid.routing, first=first, second=second).clean.scores.mean()
        == hybrid.validation
    )


def test_the_cheap_part_answers_more_rows_if_that_costs_less_than_one_standard_error() -> None:
    lost = np.zeros(100, dtype=np.bool_)
    lost[[21, 25]] = True
    hybrid = cascade(
        incumbent=(np.arange(100) % 5 > 0) | lost,
        candidate=NONE,
        bag_of_words=(SURE >= 0.15) & ~lost,
    )
    assert hybrid is not None
    # With 70 rows it scores 0.95, with 80 rows 0.94 (the standard error is 0.017), and with 90 rows
    # 0.91.
    assert (hybrid.share_to_second, hybrid.validation) == (0.2, 0.94)
    wrong = (SURE >= 0.6) & (SURE < 0.7)  # a larger share scores higher by chance
    hybrid = cascade(incumbent=ALL, candidate=NONE, nearest=~wrong)
    assert hybrid is not None
    assert hybrid.share_to_second == pytest.approx(0.7)
    assert cascade(incumbent=ALL, candidate=NONE, bag_of_words=SURE < 0.5) is None


def test_a_cheap_part_that_is_the_best_model_can_be_combined_with_a_model_that_is_right_elsewhere() -> (
    None
):
    tables = {
        "incumbent": answers(SURE >= 0.3, kind="nearest"),
        "candidate": answers(SURE < 0.5, kind="full"),
    }
    hybrid = fit_hybrid(CASCADE, tables, metric="accuracy")
    assert (
        hybrid is not None
    )  # with the first tenths, the cascade scores lower than `nearest` alone
    assert (hybrid.validation, hybrid.parts) == (1.0, ("incumbent", "candidate"))


def test_of_several_cascades_the_one_with_the_cheapest_second_part_is_frozen() -> None:
    nearest = SURE >= 0.5
    hybrid = cascade(incumbent=ALL, candidate=ALL, nearest=nearest, endpoint_zero_shot=ALL)
    assert hybrid is not None
    assert hybrid.parts == ("nearest", "incumbent")
    hybrid = cascade(
        incumbent=SURE >= 0.2, candidate=SURE >= 0.3, nearest=nearest, endpoint_zero_shot=ALL
    )
    # Only the endpoint is right on all rows. The incumbent can answer more of them than `nearest`.
    assert hybrid is not None
    assert hybrid.parts == ("incumbent", "endpoint_zero_shot")
    assert hybrid.share_to_second == pytest.approx(0.2)


def test_the_best_model_of_each_cost_can_be_a_part_and_a_hybrid_cannot() -> None:
    kinds = {"incumbent": "hybrid", "candidate": "full", "probe": "probe", "nearest": "nearest"}
    validation = {"incumbent": 0.9, "candidate": 0.8, "probe": 0.8, "nearest": 0.1}
    assert best_of_each_cost(kinds, validation=validation) == ("nearest", "candidate")
    kinds |= {"endpoint_few_shot": "endpoint_few_shot", "endpoint_retrieved": "endpoint_retrieved"}
    validation |= {"endpoint_few_shot": 0.6, "endpoint_retrieved": 0.7}
    assert best_of_each_cost(kinds, validation=validation)[-1] == "endpoint_retrieved"


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_a_frozen_cascade_scores_at_least_as_high_as_every_model_and_leaves_rows_to_both_parts(
    levels: list[int], seed: int
) -> None:
    generator, n = np.random.default_rng(seed), len(levels)
    sure = np.array(levels) / 6
    tables = {
        role: answers(generator.random(n) < 0.7, sure=sure, kind=kind)
        for role, kind in (
            ("incumbent", "full"),
            ("candidate", "lora"),
            ("bag_of_words", "bag_of_words"),
        )
    }
    hybrid = fit_hybrid(CASCADE, tables, metric="accuracy")
    if hybrid is not None:
        assert hybrid.validation >= max(table.scores.mean() for table in tables.values())
        assert 0 < hybrid.share_to_second < 1
        assert hybrid.routing.threshold not in sure


def test_the_predictions_of_a_chat_cascade_have_the_measures_of_both_parts_and_the_log_probabilities_of_one() -> (
    None
):
    right = np.array([True, False])
    nearest = replace(
        answers(right, sure=np.array([0.9, 0.1]), kind="nearest"),
        measures={"token_f1": np.array([1.0, 0.2])},
    )
    lm = replace(
        answers(~right, sure=np.array([0.5, 0.5]), kind="lora"),
        measures={"token_f1": np.array([0.3, 0.7]), "log_likelihood": np.array([-1.0, -2.0])},
        logprobs=((-0.1,), (-0.2, -0.3)),
    )
    routing = Routing(by="cascade", threshold=0.5)
    table = apply_routing(
        routing, first=ModelPredictions(nearest), second=ModelPredictions(lm)
    ).clean
    assert (table.model, table.outputs) == ("hybrid", ("yes", "yes"))
    assert {name: values.tolist() for name, values in table.measures.items()} == {
        "token_f1": [1.0, 0.7]
    }
    assert table.logprobs == ((), (-0.2, -0.3))


def test_by_group_the_candidate_answers_the_groups_in_which_it_is_not_worse() -> None:
    sex = ("f", "f", "m", "m", "x", "x", NO_GROUP, NO_GROUP)
    sure = np.full(8, 0.5)
    incumbent = answers(np.array([1, 1, 0, 1, 0, 1, 0, 0], dtype=np.bool_), sure=sure, sex=sex)
    candidate = answers(np.array([0, 1, 1, 1, 1, 0, 1, 1], dtype=np.bool_), sure=sure, sex=sex)
    hybrid = fit_hybrid(BY_SEX, {"incumbent": incumbent, "candidate": candidate}, metric="accuracy")
    assert hybrid is not None
    assert hybrid.routing == Routing(by="group", column="sex", values=("m", "x"))
    assert hybrid.parts == ("incumbent", "candidate")
    assert (hybrid.validation, hybrid.share_to_second) == (0.625, 0.5)


def test_by_group_models_are_compared_by_the_metric() -> None:
    right, sex = np.array([1, 1, 1, 0, 1, 1], dtype=np.bool_), ("f", "f", "f", "f", "m", "m")
    labels = ("a", "a", "a", "b", "a", "b")
    outputs = {"incumbent": ("a",) * 6, "candidate": ("a", "b", "b", "b", "a", "a")}
    tables = {}
    for role, answered in outputs.items():
        scores = np.array(answered) == np.array(labels)
        table = answers(right, sure=np.full(6, 0.5), sex=sex)
        tables[role] = replace(
            table, labels=labels, outputs=answered, scores=scores.astype(np.float64)
        )
    # For `f`, the candidate has fewer correct rows but the higher macro-F1: 0.5 each class instead
    # of 0.86 and 0.
    by = {metric: fit_hybrid(BY_SEX, tables, metric=metric) for metric in ("accuracy", "macro_f1")}
    assert by["accuracy"] is not None
    assert by["accuracy"].routing.values == ("m",)
    assert by["macro_f1"] is None  # the candidate is not worse in any group


@pytest.mark.parametrize("better", [True, False])
def test_by_group_there_is_no_hybrid_if_the_same_model_is_better_in_every_group(
    better: bool,
) -> None:
    sex, sure = ("f", "m"), np.full(2, 0.5)
    good, bad = (answers(np.full(2, right), sure=sure, sex=sex) for right in (True, False))
    incumbent, candidate = (bad, good) if better else (good, bad)
    assert (
        fit_hybrid(BY_SEX, {"incumbent": incumbent, "candidate": candidate}, metric="accuracy")
        is None
    )


SAME_LENGTH = np.ones(20)


def test_a_hybrid_uses_both_kinds_of_seconds_of_its_parts() -> None:
    first = PartUsage(ServingUsage((1.0,) * 5, (10.0,) * 5), SAME_LENGTH)
    second = PartUsage(ServingUsage((3.0,) * 5, (30.0,) * 5), SAME_LENGTH)
    routed = np.array([True, False, False, False] * 5)
    by_group, cascade = (
        Routing(by="group", column="sex", values=("f",)),
        Routing(by="cascade", threshold=0.5),
    )
    parts = {"first": first, "second": second}
    assert hybrid_usage(by_group, routed=routed, **parts) == ServingUsage((1.5,) * 5, (15.0,) * 5)
    assert hybrid_usage(cascade, routed=routed, **parts) == ServingUsage((1.75,) * 5, (17.5,) * 5)
    on_cpu = {
        name: PartUsage(ServingUsage(part.usage.cpu_s), SAME_LENGTH) for name, part in parts.items()
    }
    assert hybrid_usage(by_group, routed=routed, **on_cpu) == ServingUsage((1.5,) * 5)
    mixed = hybrid_usage(by_group, routed=routed, first=first, second=on_cpu["second"])
    assert mixed.gpu_s == (7.5,) * 5  # a part without GPU-seconds has none to add


def test_a_cascade_costs_the_tokens_and_the_time_of_the_rows_that_its_second_part_answers() -> None:
    routed = np.array([True, False, False, False] * 5)
    lengths = np.where(routed, 40.0, 20.0)  # routed rows are longer
    tokens = RowTokens("m", tuple(lengths.astype(int).tolist()), (4,) * 20, prices=(1.0, 2.0))
    first = PartUsage(ServingUsage((1.0,) * 5), lengths)
    second = PartUsage(ServingUsage((5.0,) * 5, tokens=tokens_by_round(tokens)), lengths, tokens)
    usage = hybrid_usage(
        Routing(by="cascade", threshold=0.5), routed=routed, first=first, second=second
    )
    # A quarter of all tokens would be 6,250.
    assert usage.tokens == Tokens("m", (10_000.0,) * 5, (1_000.0,) * 5, (1.0, 2.0))
    assert usage.cpu_s == pytest.approx((1 + 5 * 0.4,) * 5)  # they have 40% of the characters


def test_the_spread_of_the_cost_includes_the_sampling_error_of_the_share() -> None:
    n, share = 20_000, 0.3
    routed = np.random.default_rng(3).random(n) < share
    usage = PartUsage(ServingUsage((1.0,) * 200), np.ones(n))
    cost = hybrid_usage(
        Routing(by="cascade", threshold=0.5), routed=routed, first=usage, second=usage
    )
    error = np.std(cost.cpu_s, ddof=1) / np.sqrt(len(cost.cpu_s))
    assert error == pytest.approx(np.sqrt(share * (1 - share) / n), rel=0.15)
