"""Check that an endpoint answers and accepts the API key, without a request for a completion, which
costs money."""

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.client import raise_for_status, request_headers, uses_proxy
from tailorbird.registry.endpoint import Endpoint

TIMEOUT_S = 10.0
NOT_IMPLEMENTED = 501
MAX_LIST_BYTES = 4 << 20


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    model_config = ConfigDict(extra="ignore")

    data: list[_Model]


def check_answering(endpoint: Endpoint) -> str | None:
    """Return a warning if the endpoint lists its models without the configured one, else None.

    The only request is for this list. Some servers do not list all names that they accept, so this
    is no error. A server without a list, or a key without permission to read it (403), also
    answers. Raises EndpointError if the key is not set or refused (401), or if the endpoint cannot
    be reached or fails (5xx).
    """
    url = f"{endpoint.url}/models"
    client = httpx2.Client(
        headers=request_headers(endpoint), timeout=TIMEOUT_S, trust_env=uses_proxy(endpoint.url)
    )
    try:
        with client, client.stream("GET", url) as response:
            status = response.status_code
            content = _read(response)
    except httpx2.HTTPError as error:
        raise errors.EndpointUnreachable(
            f"{url} cannot be reached: {error or type(error).__name__}; check "
            "url of the endpoint and the network"
        ) from None
    if status == 401 or (status >= 500 and status != NOT_IMPLEMENTED):
        raise_for_status(response, b"", url=url)
    try:
        names = {model.id for model in _Models.model_validate_json(content).data}
    except ValidationError:
        return None
    if not names or endpoint.model in names:
        return None
    return (
        f"{url} does not list the model {endpoint.model!r}; check model of the endpoint "
        "unless it is an alias"
    )


def _read(response: httpx2.Response) -> bytes:
    """Return the body of a response, or nothing if it is larger than `MAX_LIST_BYTES`."""
    content = b""
    for part in response.iter_bytes():
        content += part
        if len(content) > MAX_LIST_BYTES:
            return b""
    return content
