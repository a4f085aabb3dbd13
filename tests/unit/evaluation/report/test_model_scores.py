"""Scores on the test rows without a near-duplicate in train."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.data.quality import DataReport
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import Confusion, DistinctRecord
from tailorbird.evaluation.report.model_scores import confusions, scores_without_near_duplicates
from tests.unit.evaluation.simulated import Simulation, report_of

LABELS = ("a", "b", "b", "a")


def table_of(outputs: str) -> Predictions:
    scores = np.array([output == label for output, label in zip(outputs, LABELS, strict=True)], dtype=np.float64)
    ids = tuple(map(str, range(len(LABELS))))
    measures = {"token_f1": scores / 2}
    return Predictions("probe", ids, LABELS, tuple(outputs), scores, scores, scores, measures=measures)


TABLES = {"candidate": table_of("abaa"), "incumbent": table_of("bbbb")}


def report_with(near: tuple[str, ...], *, num_compared: int = len(LABELS)) -> DataReport:
    return replace(
        report_of(Simulation()),
        num_test=len(LABELS),
        near_duplicates_of_test=len(near),
        near_duplicates_compared=num_compared,
        near_duplicate_test_rows=near,
    )


@pytest.mark.parametrize(
    ("metric", "candidate", "incumbent"),
    [("accuracy", 2 / 3, 2 / 3), ("token_f1", 1 / 3, 1 / 3), ("macro_f1", 2 / 3, 0.4)],
)
def test_both_models_are_scored_on_the_other_rows(metric: str, candidate: float, incumbent: float) -> None:
    distinct = scores_without_near_duplicates(TABLES, contenders=(), report=report_with(("0",)), metric=metric)
    assert distinct is not None
    assert distinct.n == 3
    assert distinct.scores == pytest.approx({"candidate": candidate, "incumbent": incumbent})


def test_further_contenders_are_scored_too() -> None:
    tables = TABLES | {"zero_shot": table_of("abba")}
    report = report_with(("0",))
    distinct = scores_without_near_duplicates(tables, contenders=("zero_shot",), report=report, metric="accuracy")
    assert distinct is not None
    assert distinct.scores["zero_shot"] == 1


def test_one_row_is_enough() -> None:
    distinct = scores_without_near_duplicates(
        TABLES, contenders=(), report=report_with(("0", "1", "2")), metric="accuracy"
    )
    assert distinct == DistinctRecord(1, {"candidate": 1.0, "incumbent": 0.0})


@pytest.mark.parametrize("near", [(), ("0", "1", "2", "3")])
def test_without_two_kinds_of_rows_there_are_no_scores(near: tuple[str, ...]) -> None:
    assert scores_without_near_duplicates(TABLES, contenders=(), report=report_with(near), metric="accuracy") is None


def test_a_sample_of_streamed_training_rows_gives_no_scores() -> None:
    report = replace(report_with(("0",)), num_in_memory=10)
    assert scores_without_near_duplicates(TABLES, contenders=(), report=report, metric="accuracy") is None


def test_a_sample_of_compared_rows_gives_no_scores() -> None:
    assert (
        scores_without_near_duplicates(
            TABLES, contenders=(), report=report_with(("0",), num_compared=3), metric="accuracy"
        )
        is None
    )


def without_measures(outputs: str) -> Predictions:
    return replace(table_of(outputs), measures={})


def test_a_confusion_counts_the_rows_that_only_one_model_answers_correctly() -> None:
    tables = {"candidate": without_measures("abac"), "incumbent": without_measures("bbba")}  # the labels are a, b, b, a
    assert confusions(tables) == (
        Confusion("a", "b", fixed=1, made=0),
        Confusion("a", "c", fixed=0, made=1),
        Confusion("b", "a", fixed=0, made=1),
    )
    same = {role: without_measures("bbba") for role in tables}
    assert confusions(same) == ()


def test_chat_tasks_have_no_confusions() -> None:
    assert confusions(TABLES) is None
