"""The requests to an endpoint that preflight announces."""

from dataclasses import replace

import pytest

from tailorbird.checks import preflight_facts
from tailorbird.checks.preflight import check_facts, check_requests
from tailorbird.checks.preflight_facts import Table
from tailorbird.config.contender import ContenderConfig
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.registry import hybrids
from tailorbird.registry.endpoint import Endpoint
from tests.build import recipe
from tests.endpoint_server import completion, endpoint_server
from tests.unit.checks.test_preflight import GOOD, only_fault
from tests.unit.serving.endpoint.versions import KEY, VARIABLE, endpoint_version


def test_the_requests_to_endpoints_are_stated() -> None:
    config = EvaluationConfig(
        contenders={
            "hosted": ContenderConfig(endpoint=EndpointConfig(url="https://host/v1", model="m"))
        },
        prompt_draws=2,
    )
    tables = (*GOOD.tables, Table("validation", "s3://lake/v", num_rows=300))
    of_champion = (Endpoint(url="https://champion/v1", model="other"),)
    facts = replace(GOOD, tables=tables, champion_endpoints=of_champion)
    champion, endpoint = check_requests(config, facts)
    assert champion.message.startswith("https://champion/v1 gets requests with the texts of rows")
    assert "at most 300 for 300 validation rows" in champion.message
    assert "'other'" in champion.remedy
    assert "at most 2,100 for 300 validation rows" in endpoint.message
    (endpoint,) = check_requests(config, GOOD)
    assert "at most 7 for each validation row" in endpoint.message
    assert list(check_requests(EvaluationConfig(), GOOD)) == []


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
        # The job `preflight` on Kubernetes has the network of a run, but no cluster.
        for facts in (GOOD, replace(GOOD, cluster=None)):
            assert only_fault(replace(facts, findings=(unreachable,))) == unreachable
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
