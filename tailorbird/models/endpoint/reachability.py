"""Check that an endpoint answers and accepts the API key, without a request for a completion, which costs money."""

import httpx2

from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.client import read_key, uses_proxy
from tailorbird.registry.endpoint import Endpoint

TIMEOUT_S = 10.0
NOT_IMPLEMENTED = 501


def require_answering(endpoint: Endpoint, *, timeout_s: float = TIMEOUT_S) -> None:
    """Raise EndpointError if the key is not set or refused (401), or the endpoint cannot be reached or fails (5xx).

    The request is for the list of models. A server without this list, or a key without permission to read it (403),
    also answers.
    """
    url, key = f"{endpoint.url}/models", read_key(endpoint)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with (
            httpx2.Client(headers=headers, timeout=timeout_s, trust_env=uses_proxy(endpoint)) as client,
            client.stream("GET", url) as response,
        ):
            status = response.status_code
    except httpx2.HTTPError as error:
        raise errors.EndpointUnreachable(
            f"{url} cannot be reached: {error or type(error).__name__}; check evaluation.endpoint.url and the network"
        ) from None
    if status == 401:
        raise errors.EndpointKeyRefused(
            f"{url} refused the API key ({status}); check the variable that evaluation.endpoint.api_key names"
        )
    if status >= 500 and status != NOT_IMPLEMENTED:
        raise errors.EndpointUnreachable(f"{url} failed ({status}); try again later")
