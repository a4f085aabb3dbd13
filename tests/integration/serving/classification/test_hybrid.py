"""A hybrid answers each row with the model that its routing rule selects."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from serving.engines.classify import Prediction
from tailorbird.registry.hybrid_routing import Routing, routes_to_second
from tests.integration.serving.classification.service import (
    TEXTS,
    Service,
    check_routed,
)


def test_a_hybrid_by_group_routes_by_attribute_and_to_the_first_part_without_one(
    service: Service, predictions: dict[str, list[Prediction]], tmp_path: Path
) -> None:
    routing = Routing(by="group", column="sex", values=("f", "x"))
    hybrid = service.register_hybrid(tmp_path, routing=routing)
    service.deploy(hybrid)
    try:
        models = requests.get(f"{service.url}/v1/models", timeout=60).json()["data"]
        assert [(model["kind"], model["version"]) for model in models] == [
            ("hybrid", hybrid.version)
        ]
        each = [{"sex": "f"}, {"sex": "m"}, {}, {"sex": "x", "age": "9"}, {"age": "f"}]
        groups = [attributes.get("sex") for attributes in each]
        check_routed(
            service, predictions, routes_to_second(routing, groups=groups), attributes=each
        )
        check_routed(service, predictions, [True] * 5, attributes={"sex": "f"})
        check_routed(service, predictions, [False] * 5, attributes={"sex": "m"})
        check_routed(service, predictions, [False] * 5)
        with ThreadPoolExecutor(8) as clients:  # requests in one batch are routed separately
            for _ in clients.map(
                lambda sex: check_routed(
                    service, predictions, [sex == "f"] * 5, attributes={"sex": sex}
                ),
                "fmfmfmfm",
            ):
                pass
        for wrong in (
            "f",
            {"sex": 1},
            [{"sex": "f"}],
            {str(n): "" for n in range(33)},
            {"sex": "f" * 257},
        ):
            refused = service.ask({"input": TEXTS, "attributes": wrong}, status=422)
            assert refused["error"]["type"] == "invalid_request"
            assert refused["error"]["message"].startswith("attributes: ")
    finally:
        service.deploy(service.first)


def test_a_cascade_routes_uncertain_texts_to_the_second_part(
    service: Service, predictions: dict[str, list[Prediction]], tmp_path: Path
) -> None:
    confidences = sorted(prediction.score for prediction in predictions["first"])
    gaps = [(high - low, (low + high) / 2) for low, high in itertools.pairwise(confidences)]
    widest, threshold = max(gaps)
    assert widest > 0.02  # another batch changes a probability by less
    routing = Routing(by="cascade", threshold=threshold)
    service.deploy(service.register_hybrid(tmp_path, routing=routing))
    try:
        routed = routes_to_second(
            routing, confidences=[prediction.score for prediction in predictions["first"]]
        )
        assert 0 < routed.sum() < len(TEXTS)
        check_routed(service, predictions, routed)
        check_routed(service, predictions, routed, attributes={"sex": "f"})
    finally:
        service.deploy(service.first)


def test_a_single_model_ignores_attributes_and_its_answers_have_no_answered_by(
    service: Service, predictions: dict[str, list[Prediction]]
) -> None:
    answer = service.ask({"input": TEXTS, "attributes": {"sex": "f"}})
    assert [result["label"] for result in answer["results"]] == [
        prediction.label for prediction in predictions["first"]
    ]
    assert all(set(result) == {"label", "score"} for result in answer["results"])
