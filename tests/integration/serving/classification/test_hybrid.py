"""A hybrid answers each row with the model that its routing rule selects."""

from pathlib import Path

import requests

from serving.engines.classify import Prediction
from tailorbird.registry.hybrid_routing import Routing, routes_to_second
from tests.integration.serving.classification.service import (
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
    finally:
        service.deploy(service.first)
