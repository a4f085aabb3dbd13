"""An endpoint is checked without a request for a completion."""

import json

import pytest

from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.reachability import MAX_LIST_BYTES, check_answering
from tailorbird.registry.endpoint import Endpoint
from tests.endpoint_server import completion, endpoint_server
from tests.unit.serving.endpoint.versions import KEY, VARIABLE


@pytest.mark.parametrize(
    ("status", "error"), [(401, errors.EndpointKeyRefused), (503, errors.EndpointUnreachable)]
)
def test_a_refused_key_and_a_failure_are_errors(
    status: int, error: type[errors.EndpointError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with endpoint_server(lambda *_: completion("yes"), models=status) as server:
        endpoint = Endpoint(url=server.url, model="m", api_key=f"env://{VARIABLE}")
        with pytest.raises(error, match=f"{server.url}/models") as caught:
            check_answering(endpoint)
        assert KEY not in str(caught.value)


def listed(*names: str) -> bytes:
    return json.dumps(
        {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}
    ).encode()


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, b"[]"),
        (200, b"not JSON"),
        (200, listed()),
        (200, listed("n", "m")),
        (200, b" " * MAX_LIST_BYTES + listed("n")),
        (403, b""),
        (501, b""),
    ],
)
def test_a_list_that_has_the_model_or_cannot_be_read_gives_no_warning(
    status: int, content: bytes
) -> None:
    with endpoint_server(lambda *_: completion("yes"), models=status, listed=content) as server:
        assert check_answering(Endpoint(url=server.url, model="m")) is None
