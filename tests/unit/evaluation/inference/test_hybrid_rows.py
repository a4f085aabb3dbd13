"""Each part of a hybrid predicts only the rows that it answers, with the result of the routing of
all predictions."""

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

# Some texts are repeated, so rows have documents.
ROWS = build.rows(
    [f"row {number % 9}" for number in range(12)], "ab" * 6, groups={"sex": tuple("fmm" * 4)}
)
CASCADE = Routing(by="cascade", threshold=0.5)
GROUP = Routing(by="group", column="sex", values=("f",))


class Parts:
    """Two models with an output per row, which record the rows that they predict."""

    def __init__(self, *, is_chat: bool) -> None:
        self.is_chat = is_chat
        self.predicted: dict[str, list[int]] = {"first": [], "second": []}

    def __call__(self, name: PartName, rows: Rows) -> Predictions:
        numbers = np.array([int(row) for row in rows.row_ids])
        self.predicted[name] += numbers.tolist()
        outputs = tuple("ab"[int(number % 3 > 0)] for number in numbers)
        is_second = name == "second"
        sure = np.full(len(rows), np.nan) if is_second else (numbers * 5 % 7) / 7
        if not self.is_chat:
            return label_predictions(
                name, rows=rows, outputs=outputs, confidences=sure, calibrated=sure
            )
        table = text_predictions(name, rows=rows, outputs=outputs, confidences=sure)
        if not is_second:
            return table
        measures = table.measures | {"similarity": -sure}
        return replace(table, measures=measures, logprobs=tuple((-float(n),) for n in numbers))


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize(
    ("routing", "answered", "routed"),
    [
        (CASCADE, range(12), [row for row in range(12) if row * 5 % 7 / 7 < 0.5]),
        (GROUP, [row for row in range(12) if row % 3], range(0, 12, 3)),
        (replace(CASCADE, threshold=0.0), range(12), []),
        (replace(GROUP, values=("f", "m")), [], range(12)),
    ],
)
def test_the_predictions_are_those_of_the_routing_of_all_rows(
    routing: Routing, answered: list[int], routed: list[int], is_chat: bool
) -> None:
    parts = Parts(is_chat=is_chat)
    hybrid = predict_hybrid(routing, rows=ROWS, predict=parts)
    assert parts.predicted == {"first": list(answered), "second": list(routed)}
    if not parts.predicted["first"] or not parts.predicted["second"]:
        return
    first, second = (ModelPredictions(parts(name, ROWS)) for name in ("first", "second"))
    expected = apply_routing(routing, first=first, second=second).clean
    # as text, NaN equals NaN
    assert str(hybrid.to_table().to_pydict()) == str(expected.to_table().to_pydict())
    assert hybrid.model == expected.model == "hybrid"
    assert hybrid.clusters is not None
