"""Answers of a chat model become scores, including those of the metrics that the recipe
configures."""

import numpy as np

from tailorbird.config.answers import AnswersConfig
from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.row_predictions import label_predictions, text_predictions
from tailorbird.evaluation.predictions import Predictions
from tests import build


def test_the_configured_metrics_are_scored_and_stored() -> None:
    answers = {"numeric": {"absolute": 1}, "choice": {"options": ["3", "4"]}}
    rows = build.rows("abcd", "3434", chat=True, answers=AnswersConfig.model_validate(answers))
    outputs = ("3", "It is 5", "no", "3 or 4")
    table = text_predictions("full", rows=rows, outputs=outputs, confidences=np.ones(4))
    assert table.per_row("choice").tolist() == [1, 0, 0, 0]
    assert table.per_row("exact_match").tolist() == [1, 0, 0, 0]
    for stored in (table, Predictions.from_table(table.to_table())):
        assert stored.per_row("numeric").tolist() == [1, 1, 0, 1]


def test_rows_with_the_same_text_share_a_cluster_unless_split_keys_define_clusters() -> None:
    def clusters_of(rows: Rows) -> tuple[str, ...] | None:
        ones = np.ones(len(rows))
        return label_predictions(
            "probe", rows=rows, outputs=rows.labels, confidences=ones, calibrated=ones
        ).clusters

    texts = ("One text", "another", "one  TEXT")
    assert clusters_of(build.rows(texts[:2])) is None
    assert clusters_of(build.rows(texts)) == ("0", "1", "0")
    keys = ("patient 3", "patient 9", "patient 9")
    assert clusters_of(build.rows(texts, split_keys=keys)) == ("0", "1", "1")
