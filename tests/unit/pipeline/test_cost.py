"""The cost of a champion that is a cascade with an endpoint, from its parts and the rows that each
answers."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.cost import MeasuredCosts, ServingDevice, ServingUsage, Tokens
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.row_predictions import label_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.pipeline import cost
from tailorbird.pipeline.cost import endpoint_answers, measure_cost
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tests import build

ROWS = build.rows(["short", "a longer text"] * 5, ["a", "b"] * 5)
SURE = np.array([0.9, 0.1] * 5)  # the longer texts are routed to the endpoint
PRICES = (0.1, 0.2)
MEASURED = {
    "incumbent: first part": ServingUsage((1.0,) * 5),
    "incumbent: second part": ServingUsage((2.0,) * 5),
    "candidate": ServingUsage((4.0,) * 5),
}
MODELS = {"incumbent": "cascade", "candidate": "full"}
ROUTED = ["1", "3", "5", "7", "9"]
ANSWER = EndpointAnswer("b", "stop", 20, 3, "m-1", None)


def table(kind: str) -> Predictions:
    return label_predictions(
        kind, rows=ROWS, outputs=ROWS.labels, confidences=SURE, calibrated=SURE
    )


TABLES = {"incumbent": table("hybrid"), "candidate": table("full")}


def predict(uri: str) -> Predictions:
    return table({"bag": "bag_of_words"}[uri])


def champion_cascade(monkeypatch: pytest.MonkeyPatch, answer: EndpointAnswer) -> list[str]:
    """Let the incumbent be a cascade whose endpoint answers each row with `answer`; return the ids
    of these rows."""
    endpoint = Endpoint(url="http://host", model="m", prices=PRICES)
    parts = (SimpleNamespace(uri="bag"), SimpleNamespace(uri="endpoint"))
    cascade = SimpleNamespace(routing=Routing(by="cascade", threshold=0.5), parts=parts)
    requested: list[str] = []

    def answer_rows(uri: str, *, rows: Rows, limits: RequestLimits) -> list[EndpointAnswer]:
        assert (uri, limits) == ("endpoint", RequestLimits())
        requested.extend(rows.row_ids)
        return [answer] * len(rows)

    def config_of(uri: str) -> SimpleNamespace:
        hybrid = cascade if uri == "cascade" else None
        of_endpoint = endpoint if uri == "endpoint" else None
        return SimpleNamespace(hybrid=hybrid, endpoint=of_endpoint, classes=("a", "b"))

    monkeypatch.setattr(cost, "read_artifact_config", config_of)
    monkeypatch.setattr(cost, "answer_rows_of_endpoint", answer_rows)
    return requested


@pytest.mark.parametrize("reported", [True, False])
def test_a_champion_cascade_costs_its_parts_and_the_tokens_of_routed_rows(
    reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = champion_cascade(
        monkeypatch, replace(ANSWER, output_tokens=3 if reported else None)
    )

    def measured(
        _: object, uris: Mapping[str, str], *, tokens: Mapping[str, Tokens]
    ) -> MeasuredCosts:
        assert dict(uris) == {
            "candidate": "full",
            "incumbent: first part": "bag",
            "incumbent: second part": "endpoint",
        }
        assert list(tokens) == ["incumbent: second part"]
        return MeasuredCosts(ServingDevice("CPU", ("incumbent: first part",)), MEASURED)

    monkeypatch.setattr(cost, "_measured", measured)
    monkeypatch.setattr(cost, "request_limits", lambda _: RequestLimits())
    context = SimpleNamespace(splits=SimpleNamespace(test=ROWS), inputs=None)
    result = measure_cost(
        context,  # type: ignore[arg-type]
        MODELS,
        hybrid=None,
        tables=TABLES,
        predict=predict,
    )
    assert requested == ROUTED  # no request for a row that the first part answers
    assert list(result.serving) == ["incumbent", "candidate"]
    assert result.serving["candidate"] == MEASURED["candidate"]
    usage = result.serving["incumbent"]
    counts = ((10_000.0,) * 5, (1_500.0,) * 5) if reported else ((), ())
    assert usage.tokens == Tokens("m at http://host", counts[0], counts[1], PRICES)
    assert usage.cpu_s == pytest.approx((1 + 2 * 13 / 18,) * 5)  # 13 of 18 characters
    assert result.device.emulated == ("incumbent",)


def test_the_answers_of_an_endpoint_in_a_champion_cascade_are_counted_on_the_rows_that_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = champion_cascade(monkeypatch, replace(ANSWER, text="", finish_reason="length"))
    answers = endpoint_answers(
        MODELS,
        rows=ROWS,
        tables=TABLES,
        predict=predict,
        limits=RequestLimits(),
    )
    assert answers == {"incumbent: second part": AnswerCounts(5, refused=0, truncated=5, empty=5)}
    assert counted == ROUTED
