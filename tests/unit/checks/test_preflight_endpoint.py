"""The requests to an endpoint that preflight announces."""

from dataclasses import replace
from typing import Any

import pytest

from tailorbird.checks import preflight_facts
from tailorbird.checks.preflight import check_facts
from tailorbird.checks.preflight_endpoint import check_endpoint
from tailorbird.checks.preflight_facts import Table
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.registry import hybrids
from tailorbird.registry.endpoint import Endpoint
from tests.endpoint_server import completion, endpoint_server
from tests.unit.checks.test_preflight import GOOD, recipe
from tests.unit.serving.endpoint.versions import KEY, VARIABLE, endpoint_version

TABLES = tuple(
    Table(split, f"s3://lake/{split}", num_rows=300, num_files=1, num_read=1)
    for split in ("train", "validation")
)


def lines(tables: tuple[Table, ...] = TABLES, **endpoint: Any) -> list[str]:
    config = EvaluationConfig(
        endpoint=EndpointConfig(url="https://host/v1", model="m", **endpoint),
        prompt_draws=2,
        retrieved_examples=(4, 8),
    )
    return [line for result in check_endpoint(config, tables) for line in result.lines()]


def test_the_number_of_requests_on_validation_is_stated() -> None:
    first, remedy = lines()
    assert "https://host/v1 gets the texts of rows: 1,500 requests for 300 validation rows" in first
    assert "set evaluation.endpoint.max_spend" in remedy
    assert "max_spend" not in lines(price_input=1, price_output=1, max_spend=1)[1]
    assert "5 requests for each validation row" in lines(TABLES[:1])[0]


def test_without_an_endpoint_nothing_is_stated() -> None:
    assert list(check_endpoint(EvaluationConfig(), TABLES)) == []


@pytest.mark.parametrize(("named", "remedy"), [(None, True), ("other", True), ("m", False)])
def test_the_requests_of_a_champion_are_stated_and_how_to_limit_them(
    named: str | None, remedy: bool
) -> None:
    endpoint = EndpointConfig(url="https://host/v1", model=named) if named else None
    of_champion = (Endpoint(url="https://host/v1", model="m"),)
    champion, *_ = check_endpoint(
        EvaluationConfig(endpoint=endpoint), TABLES, of_champion=of_champion
    )
    text = " ".join(champion.lines())
    assert "the champion sends the texts of rows to https://host/v1: at most 300 requests" in text
    assert ("set evaluation.endpoint with the model 'm'" in text) is remedy


def test_the_limit_that_is_stored_with_the_champion_is_stated() -> None:
    of_champion = (Endpoint(url="https://host/v1", model="m", max_spend=20),)
    (champion,) = check_endpoint(EvaluationConfig(), TABLES, of_champion=of_champion)
    text = " ".join(champion.lines())
    assert "may cost 20, the max_spend of its version" in text
    assert "to change this limit, set evaluation.endpoint with the model 'm'" in text


def test_the_endpoints_of_a_champion_are_those_of_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_endpoint = endpoint_version("https://host/v1")
    other = of_endpoint.model_copy(update={"endpoint": None})
    hybrid = other.model_copy(update={"hybrid": "pinned parts"})
    monkeypatch.setattr(preflight_facts, "read_champion", lambda _: ("champion", "etag"))
    monkeypatch.setattr(hybrids, "read_parts", lambda _: (other, of_endpoint))
    for version, expected in ((of_endpoint, 1), (other, 0), (hybrid, 1)):
        monkeypatch.setattr(preflight_facts, "champion_version", lambda _, version=version: version)
        assert preflight_facts.champion_endpoints("s3://b/t") == (of_endpoint.endpoint,) * expected


def test_endpoints_that_cannot_be_used_are_found_without_a_request_for_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with endpoint_server(lambda *_: completion("yes")) as server:
        keyed = Endpoint(url=server.url, model="m", api_key=f"env://{VARIABLE}")
        closed = Endpoint(url="http://127.0.0.1:9/v1", model="m")
        no_key, unreachable = preflight_facts.endpoint_findings((keyed, closed))
        assert (no_key.state, unreachable.state) == ("fault", "fault")
        assert (
            f"{VARIABLE}, which contains the API key of {server.url}, is not set" in no_key.message
        )
        assert "http://127.0.0.1:9/v1/models cannot be reached" in unreachable.message
        monkeypatch.setenv(VARIABLE, KEY)
        assert list(preflight_facts.endpoint_findings((keyed, keyed))) == []
        assert (server.bodies, server.paths) == ([], ["/v1/models"])


def test_a_model_that_is_not_listed_is_a_note_because_some_servers_do_not_list_aliases() -> None:
    with endpoint_server(
        lambda *_: completion("yes"), models=200, listed=b'{"data": [{"id": "other"}]}'
    ) as server:
        [warning] = preflight_facts.endpoint_findings((Endpoint(url=server.url, model="m"),))
    lines = check_facts(recipe(), replace(GOOD, findings=(warning,)))
    assert [line for line in lines if line.name == "endpoint"] == [warning]
    assert warning.state == "note"
    assert "does not list the model 'm'" in warning.message
