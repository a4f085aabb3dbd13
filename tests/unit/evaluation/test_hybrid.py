"""Tests of a hybrid's routing rule, fitted on validation by group and by confidence."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tailorbird.config.evaluation import HybridConfig
from tailorbird.evaluation.gates.cost import ServingUsage
from tailorbird.evaluation.hybrid import fit_routing, hybrid_cost
from tailorbird.evaluation.predictions import Predictions
from tailorbird.registry.routing import NO_GROUP, Routing

BY_CONFIDENCE = HybridConfig(by="confidence")
BY_SEX = HybridConfig(by="group", column="sex")


def answers(right: NDArray[np.bool_], *, sure: NDArray[np.float64], sex: tuple[str, ...] = ()) -> Predictions:
    n = len(right)
    return Predictions(
        model="a model",
        row_ids=tuple(map(str, range(n))),
        labels=("yes",) * n,
        outputs=tuple("yes" if hit else "no" for hit in right),
        scores=right.astype(np.float64),
        confidences=sure,
        calibrated=sure,
        groups={"sex": sex} if sex else {},
    )


def test_by_confidence_the_incumbent_answers_its_most_confident_rows() -> None:
    sure = np.linspace(0, 0.99, 100)
    incumbent = answers(sure >= 0.4, sure=sure)  # right on its 60 most confident rows
    candidate = answers(np.arange(100) < 80, sure=np.full(100, 0.5))
    routing = fit_routing(BY_CONFIDENCE, incumbent=incumbent, candidate=candidate, metric="accuracy")
    assert routing is not None
    assert (routing.by, routing.column, routing.values) == ("confidence", None, ())
    assert routing.threshold is not None
    # The incumbent answers as many rows as possible while the hybrid is right on at least 80 rows.
    assert routing.threshold == pytest.approx(0.2, abs=0.03)
    kept = sure >= routing.threshold
    assert np.where(kept, incumbent.scores, candidate.scores).sum() >= candidate.scores.sum()


def test_by_confidence_there_is_no_hybrid_if_the_incumbent_is_wrong_on_its_most_confident_rows() -> None:
    sure = np.linspace(0, 0.99, 100)
    incumbent = answers(sure < 0.5, sure=sure)
    candidate = answers(np.ones(100, dtype=np.bool_), sure=sure)
    assert fit_routing(BY_CONFIDENCE, incumbent=incumbent, candidate=candidate, metric="accuracy") is None


def test_by_group_the_candidate_answers_the_groups_in_which_it_is_not_worse() -> None:
    sex = ("f", "f", "m", "m", "x", "x", NO_GROUP, NO_GROUP)
    sure = np.full(8, 0.5)
    incumbent = answers(np.array([1, 1, 0, 1, 0, 1, 0, 0], dtype=np.bool_), sure=sure, sex=sex)
    candidate = answers(np.array([0, 1, 1, 1, 1, 0, 1, 1], dtype=np.bool_), sure=sure, sex=sex)
    routing = fit_routing(BY_SEX, incumbent=incumbent, candidate=candidate, metric="accuracy")
    assert routing is not None
    assert (routing.by, routing.column, routing.values, routing.threshold) == ("group", "sex", ("m", "x"), None)


def test_by_group_models_are_compared_by_the_metric() -> None:
    right, sex = np.array([1, 1, 1, 0, 1, 1], dtype=np.bool_), ("f", "f", "f", "f", "m", "m")
    labels = ("a", "a", "a", "b", "a", "b")
    incumbent = replace(answers(right, sure=np.full(6, 0.5), sex=sex), labels=labels, outputs=("a",) * 6)
    candidate = replace(incumbent, outputs=("a", "b", "b", "b", "a", "a"))
    # For `f`, the candidate has fewer correct rows but the higher macro-F1: 0.5 each class instead of 0.86 and 0.
    by = {m: fit_routing(BY_SEX, incumbent=incumbent, candidate=candidate, metric=m) for m in ("accuracy", "macro_f1")}
    assert by["accuracy"] is not None
    assert by["accuracy"].values == ("m",)
    assert by["macro_f1"] is None  # the candidate is not worse in any group


@pytest.mark.parametrize("better", [True, False])
def test_by_group_there_is_no_hybrid_if_the_same_model_is_better_in_every_group(better: bool) -> None:
    sex, sure = ("f", "m"), np.full(2, 0.5)
    good, bad = (answers(np.full(2, right), sure=sure, sex=sex) for right in (True, False))
    incumbent, candidate = (bad, good) if better else (good, bad)
    assert fit_routing(BY_SEX, incumbent=incumbent, candidate=candidate, metric="accuracy") is None


def test_a_hybrid_uses_both_kinds_of_seconds_of_its_parts() -> None:
    costs = {
        "incumbent": ServingUsage((1.0,) * 5, (10.0,) * 5),
        "candidate": ServingUsage((3.0,) * 5, (30.0,) * 5),
    }
    by_group = Routing(by="group", column="sex", values=("f",))
    assert hybrid_cost(by_group, costs=costs, share=0.25) == ServingUsage((1.5,) * 5, (15.0,) * 5)
    by_confidence = Routing(by="confidence", threshold=0.5)
    assert hybrid_cost(by_confidence, costs=costs, share=0.25) == ServingUsage((1.75,) * 5, (17.5,) * 5)
    on_cpu = {role: ServingUsage(usage.cpu_s) for role, usage in costs.items()}
    assert hybrid_cost(by_group, costs=on_cpu, share=0.25) == ServingUsage((1.5,) * 5)
