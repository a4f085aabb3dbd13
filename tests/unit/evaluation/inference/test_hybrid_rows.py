"""Each part of a hybrid predicts only the rows that it answers, with the result of the routing of
all predictions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tailorbird.data.rows import Rows
from tailorbird.evaluation.hybrid import apply_routing
from tailorbird.evaluation.inference.hybrid_rows import predict_hybrid
from tailorbird.evaluation.inference.row_predictions import label_predictions, text_predictions
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.registry.hybrid_routing import PartName, Routing
from tests import build

N = 12
TEXTS = tuple(
    f"row {index % 9}" for index in range(N)
)  # some texts are repeated, so rows have documents
ROWS = build.rows(
    TEXTS, ("a", "b") * (N // 2), groups={"sex": tuple("fm"[row % 3 > 0] for row in range(N))}
)
CASCADE = Routing(by="cascade", threshold=0.5)
GROUP = Routing(by="group", column="sex", values=("f",))


class Part:
    """A model with an output per row, which records the rows that it predicts."""

    def __init__(self, kind: str, *, is_chat: bool) -> None:
        self.kind, self.is_chat = kind, is_chat
        self.predicted: list[str] = []

    def __call__(self, rows: Rows) -> Predictions:
        self.predicted += rows.row_ids
        numbers = np.array([int(row) for row in rows.row_ids])
        outputs = tuple("ab"[int(number % 3 > 0)] for number in numbers)
        sure = (numbers * 5 % 7) / 7 if self.kind == "first" else np.full(len(rows), np.nan)
        if not self.is_chat:
            return label_predictions(
                self.kind, rows=rows, outputs=outputs, confidences=sure, calibrated=sure
            )
        has_language_model = self.kind == "second"
        return text_predictions(
            self.kind,
            rows=rows,
            outputs=outputs,
            confidences=sure,
            log_likelihoods=-sure if has_language_model else None,
            logprobs=tuple((-float(number),) for number in numbers) if has_language_model else None,
        )


def by_part(**parts: Callable[[Rows], Predictions]) -> Callable[[PartName, Rows], Predictions]:
    """Return a function that predicts rows with the part of a name."""
    return lambda name, rows: parts[name](rows)


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize("routing", [CASCADE, GROUP])
def test_the_predictions_are_those_of_the_routing_of_all_rows(
    routing: Routing, is_chat: bool
) -> None:
    first, second = Part("first", is_chat=is_chat), Part("second", is_chat=is_chat)
    hybrid = predict_hybrid(routing, rows=ROWS, predict=by_part(first=first, second=second))
    answered, routed = list(first.predicted), list(second.predicted)
    tables = [ModelPredictions(part(ROWS)) for part in (first, second)]
    expected = apply_routing(routing, first=tables[0], second=tables[1]).clean
    columns, expected_columns = hybrid.to_table().to_pydict(), expected.to_table().to_pydict()
    assert (hybrid.model, columns.keys()) == (expected.model, expected_columns.keys())
    for name, column in columns.items():
        assert str(column) == str(expected_columns[name])  # as text, NaN equals NaN
    assert hybrid.clusters is not None
    if routing is CASCADE:
        assert answered == list(ROWS.row_ids)
        assert routed == [row for row in ROWS.row_ids if int(row) * 5 % 7 / 7 < 0.5]
    else:
        assert sorted(answered + routed, key=int) == list(ROWS.row_ids)
        assert routed == [row for row in ROWS.row_ids if int(row) % 3 == 0]


def test_a_part_without_rows_is_not_called() -> None:
    def fail(rows: Rows) -> Predictions:
        pytest.fail(f"called with {len(rows)} rows")

    part = Part("first", is_chat=False)
    always = predict_hybrid(
        replace(CASCADE, threshold=0.0), rows=ROWS, predict=by_part(first=part, second=fail)
    )
    assert always.model == "hybrid"
    everyone = replace(GROUP, values=("f", "m"))
    assert (
        predict_hybrid(everyone, rows=ROWS, predict=by_part(first=fail, second=part)).row_ids
        == ROWS.row_ids
    )
