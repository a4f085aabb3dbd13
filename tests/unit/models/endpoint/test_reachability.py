"""An endpoint is checked without a request for a completion."""

import pytest

from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.reachability import require_answering
from tailorbird.registry.endpoint import Endpoint
from tests.endpoint_server import completion, endpoint_server
from tests.unit.serving.endpoint.versions import KEY, VARIABLE


@pytest.mark.parametrize("status", [200, 403, 404, 405, 429, 501])
def test_a_server_that_answers_can_be_used_even_without_a_list_of_models(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with endpoint_server(lambda *_: completion("yes"), models=status) as server:
        require_answering(Endpoint(url=server.url, model="m", api_key=f"env://{VARIABLE}"))
        assert server.authorizations == [f"Bearer {KEY}"]


@pytest.mark.parametrize(("status", "error"), [(401, errors.EndpointKeyRefused), (503, errors.EndpointUnreachable)])
def test_a_refused_key_and_a_failure_are_errors(
    status: int, error: type[errors.EndpointError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with endpoint_server(lambda *_: completion("yes"), models=status) as server:
        endpoint = Endpoint(url=server.url, model="m", api_key=f"env://{VARIABLE}")
        with pytest.raises(error, match=f"{server.url}/models .*{status}") as caught:
            require_answering(endpoint)
        assert KEY not in str(caught.value)
