"""Tests of a hybrid's parts and routing rule, fitted on validation by group and as a cascade."""

from collections.abc import Iterable, Mapping
from typing import Any

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
from tests import build

CASCADE = "cascade"
BY_SEX = "sex"
BoolArray = NDArray[np.bool_]
ROW = np.arange(100)
SURE = np.linspace(0, 0.99, 100)
ALL = np.ones(100, dtype=np.bool_)


def answers(right: BoolArray, *, kind: str = "probe", **fields: Any) -> Predictions:
    """Return predictions that are right on these rows, by default with growing confidences."""
    fields = {"calibrated": SURE} | fields
    outputs = np.where(right, "yes", "no").tolist()
    return build.predictions(outputs, ("yes",) * len(right), model=kind, **fields)


def fitted(tables: Mapping[str, Predictions], rule: str = CASCADE) -> FrozenHybrid:
    hybrid = fit_hybrid(rule, tables, metric="accuracy")
    assert hybrid is not None
    return hybrid


def tables_of(**right: BoolArray) -> dict[str, Predictions]:
    """Return models that are right on these rows: `incumbent` and `candidate` are `full` and
    `lora`, and each other role is its kind."""
    kinds = {"incumbent": "full", "candidate": "lora"}
    return {role: answers(rows, kind=kinds.get(role, role)) for role, rows in right.items()}


def test_the_cheap_part_of_a_cascade_answers_the_rows_on_which_it_is_confident_and_right() -> None:
    # 80 rows, 60 rows, and the 55 most confident rows are right.
    tables = tables_of(incumbent=ROW % 5 > 0, candidate=ROW % 5 > 1, bag_of_words=SURE >= 0.45)
    hybrid = fitted(tables)
    assert hybrid.parts == ("bag_of_words", "incumbent")
    # It is right on its most confident 50 rows. On the next 10 it is wrong on 5, and the incumbent
    # on 2.
    assert hybrid.share_to_second == 0.5
    assert hybrid.validation == pytest.approx(0.9)
    assert hybrid.routing.threshold == pytest.approx(0.495)  # halfway between two confidences
    first, second = (ModelPredictions(tables[role]) for role in hybrid.parts)
    table = apply_routing(hybrid.routing, first=first, second=second).clean
    assert table.scores.mean() == hybrid.validation


def test_the_cheap_part_answers_more_rows_if_that_costs_less_than_one_standard_error() -> None:
    lost = np.isin(ROW, (21, 25))
    incumbent = (ROW % 5 > 0) | lost
    cheap = (SURE >= 0.15) & ~lost
    hybrid = fitted(tables_of(incumbent=incumbent, candidate=~ALL, bag_of_words=cheap))
    # With 70 rows it scores 0.95, with 80 rows 0.94 (the standard error is 0.017), and with 90 rows
    # 0.91.
    assert (hybrid.share_to_second, hybrid.validation) == (0.2, 0.94)
    wrong = (SURE >= 0.6) & (SURE < 0.7)  # a larger share scores higher by chance
    hybrid = fitted(tables_of(incumbent=ALL, candidate=~ALL, nearest=~wrong))
    assert hybrid.share_to_second == pytest.approx(0.7)
    worse = tables_of(incumbent=ALL, candidate=~ALL, bag_of_words=SURE < 0.5)
    assert fit_hybrid(CASCADE, worse, metric="accuracy") is None


def test_of_several_cascades_the_one_with_the_cheapest_second_part_is_frozen() -> None:
    cheap = {"nearest": SURE >= 0.5, "endpoint_zero_shot": ALL}
    hybrid = fitted(tables_of(incumbent=ALL, candidate=ALL, **cheap))
    assert hybrid.parts == ("nearest", "incumbent")
    hybrid = fitted(tables_of(incumbent=SURE >= 0.2, candidate=SURE >= 0.3, **cheap))
    # Only the endpoint is right on all rows. The incumbent can answer more of them than `nearest`.
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
    generator = np.random.default_rng(seed)
    sure = np.array(levels) / 6
    tables = {}
    for kind in ("full", "lora", "bag_of_words"):
        tables[kind] = answers(generator.random(len(levels)) < 0.7, kind=kind, calibrated=sure)
    hybrid = fit_hybrid(CASCADE, tables, metric="accuracy")
    if hybrid is not None:
        assert hybrid.validation >= max(table.scores.mean() for table in tables.values())
        assert 0 < hybrid.share_to_second < 1
        assert hybrid.routing.threshold not in sure


def test_a_chat_cascade_has_the_measures_of_both_parts_and_the_log_probabilities_of_one() -> None:
    right = np.array([True, False])
    nearest = answers(
        right, calibrated=np.array([0.9, 0.1]), measures={"token_f1": np.array([1.0, 0.2])}
    )
    measures = {"token_f1": np.array([0.3, 0.7]), "rouge_l": np.array([-1.0, -2.0])}
    lm = answers(
        ~right, calibrated=right * 0.5, measures=measures, logprobs=((-0.1,), (-0.2, -0.3))
    )
    first = ModelPredictions(nearest)
    second = ModelPredictions(lm)
    table = apply_routing(Routing(by="cascade", threshold=0.5), first=first, second=second).clean
    assert (table.model, table.outputs) == ("hybrid", ("yes", "yes"))
    assert list(table.measures) == ["token_f1"]
    assert table.measures["token_f1"].tolist() == [1.0, 0.7]
    assert table.logprobs == ((), (-0.2, -0.3))


def by_sex(sex: Iterable[str], incumbent: str, candidate: str, labels: str) -> Any:
    """Return the outputs of both models, one letter for each row."""
    groups = {"sex": tuple(sex)}
    return {
        role: build.predictions(outputs, labels, groups=groups)
        for role, outputs in {"incumbent": incumbent, "candidate": candidate}.items()
    }


def test_by_group_the_candidate_answers_the_groups_in_which_it_is_not_worse() -> None:
    sex = ("f", "f", "m", "m", "x", "x", NO_GROUP, NO_GROUP)
    hybrid = fitted(by_sex(sex, "aabababb", "baaaabaa", "a" * 8), BY_SEX)
    assert hybrid.routing == Routing(by="group", column="sex", values=("m", "x"))
    assert hybrid.parts == ("incumbent", "candidate")
    assert (hybrid.validation, hybrid.share_to_second) == (0.625, 0.5)
    for outputs in (("aa", "bb"), ("bb", "aa")):  # the same model is better in every group
        assert fit_hybrid(BY_SEX, by_sex("fm", *outputs, "aa"), metric="accuracy") is None


def test_by_group_models_are_compared_by_the_metric() -> None:
    tables = by_sex("ffffmm", "aaaaaa", "abbbaa", "aaabab")
    # For `f`, the candidate has fewer correct rows but the higher macro-F1: 0.5 each class instead
    # of 0.86 and 0.
    assert fitted(tables, BY_SEX).routing.values == ("m",)
    # The candidate is not worse in any group.
    assert fit_hybrid(BY_SEX, tables, metric="macro_f1") is None


SAME_LENGTH = np.ones(20)


def test_a_hybrid_uses_both_kinds_of_seconds_of_its_parts() -> None:
    first = PartUsage(ServingUsage((1.0,) * 5, (10.0,) * 5), SAME_LENGTH)
    second = PartUsage(ServingUsage((3.0,) * 5, (30.0,) * 5), SAME_LENGTH)
    routed = np.array([True, False, False, False] * 5)
    by_group = Routing(by="group", column="sex", values=("f",))
    cascade = Routing(by="cascade", threshold=0.5)
    parts = {"first": first, "second": second}
    assert hybrid_usage(by_group, routed=routed, **parts) == ServingUsage((1.5,) * 5, (15.0,) * 5)
    assert hybrid_usage(cascade, routed=routed, **parts) == ServingUsage((1.75,) * 5, (17.5,) * 5)
    parts["second"] = PartUsage(ServingUsage((3.0,) * 5), SAME_LENGTH)
    # A part without GPU-seconds has none to add.
    assert hybrid_usage(by_group, routed=routed, **parts).gpu_s == (7.5,) * 5
    parts["first"] = parts["second"]
    assert hybrid_usage(by_group, routed=routed, **parts).gpu_s is None


def test_a_cascade_costs_the_tokens_and_the_time_of_the_rows_that_its_second_part_answers() -> None:
    routed = np.array([True, False, False, False] * 5)
    lengths = np.where(routed, 40.0, 20.0)  # routed rows are longer
    tokens = RowTokens("m", tuple(lengths.astype(int).tolist()), (4,) * 20, prices=(1.0, 2.0))
    first = PartUsage(ServingUsage((1.0,) * 5), lengths)
    second = PartUsage(ServingUsage((5.0,) * 5, tokens=tokens_by_round(tokens)), lengths, tokens)
    routing = Routing(by="cascade", threshold=0.5)
    usage = hybrid_usage(routing, routed=routed, first=first, second=second)
    # A quarter of all tokens would be 6,250.
    assert usage.tokens == Tokens("m", (10_000.0,) * 5, (1_000.0,) * 5, (1.0, 2.0))
    assert usage.cpu_s == pytest.approx((1 + 5 * 0.4,) * 5)  # they have 40% of the characters
