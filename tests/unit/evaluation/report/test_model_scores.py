"""Confusions of candidate and incumbent."""

from dataclasses import replace

import numpy as np

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import Confusion
from tailorbird.evaluation.report.model_scores import confusions

LABELS = ("a", "b", "b", "a")


def table_of(outputs: str) -> Predictions:
    scores = np.array(
        [output == label for output, label in zip(outputs, LABELS, strict=True)], dtype=np.float64
    )
    ids = tuple(map(str, range(len(LABELS))))
    measures = {"token_f1": scores / 2}
    return Predictions(
        "probe", ids, LABELS, tuple(outputs), scores, scores, scores, measures=measures
    )


TABLES = {"candidate": table_of("abaa"), "incumbent": table_of("bbbb")}


def without_measures(outputs: str) -> Predictions:
    return replace(table_of(outputs), measures={})


def test_a_confusion_counts_the_rows_that_only_one_model_answers_correctly() -> None:
    tables = {
        "candidate": without_measures("abac"),
        "incumbent": without_measures("bbba"),
    }  # the labels are a, b, b, a
    assert confusions(tables) == (
        Confusion("a", "b", fixed=1, made=0),
        Confusion("a", "c", fixed=0, made=1),
        Confusion("b", "a", fixed=0, made=1),
    )
    same = {role: without_measures("bbba") for role in tables}
    assert confusions(same) == ()


def test_chat_tasks_have_no_confusions() -> None:
    assert confusions(TABLES) is None
