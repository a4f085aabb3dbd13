"""Answers of a chat model become scores, including those of the metrics that the recipe
configures."""

import numpy as np

from tailorbird.config.answers import AnswersConfig
from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.row_predictions import text_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import compare
from tests import build

ANSWERS = AnswersConfig.model_validate(
    {"numeric": {"absolute": 1}, "choice": {"options": ["3", "4"]}}
)
ROWS = build.rows(
    ("a", "b", "c", "d"),
    ("3", "4", "3", "4"),
    conversations=tuple((("user", text),) for text in "abcd"),
    answers=ANSWERS,
)


def predictions_of(*outputs: str, rows: Rows = ROWS) -> Predictions:
    return text_predictions("full", rows=rows, outputs=outputs, confidences=np.ones(len(rows)))


def test_the_configured_metrics_are_scored_and_stored() -> None:
    table = predictions_of("3", "It is 5", "no", "3 or 4")
    assert table.per_row("numeric").tolist() == [1, 1, 0, 1]
    assert table.per_row("choice").tolist() == [1, 0, 0, 0]
    assert table.per_row("exact_match").tolist() == [1, 0, 0, 0]
    stored = Predictions.from_table(table.to_table())
    assert stored.per_row("numeric").tolist() == [1, 1, 0, 1]
    assert not set(predictions_of("3", rows=ROWS.take([0])).measures) - set(table.measures)


def test_a_configured_metric_is_compared_pairwise() -> None:
    candidate, other = predictions_of("3", "4", "3", "4"), predictions_of("9", "9", "3", "9")
    comparison = compare(candidate, other=other, metric="numeric", alpha=0.05)
    assert (comparison.candidate_score, comparison.other_score, comparison.gain) == (
        1.0,
        0.25,
        0.75,
    )
