"""Failures of requests to an endpoint, as errors for clients.

Clients do not receive the endpoint's own messages, because they can name accounts and keys.
"""

import math

from serving.http.schemas import RequestError
from tailorbird.models.endpoint.client import Body
from tailorbird.models.endpoint.errors import (
    EndpointError,
    EndpointRateLimited,
    EndpointRefused,
    EndpointRetryable,
    EndpointTimeout,
)
from tailorbird.models.endpoint.fault import CONTENT_CODES, TOO_LONG, EndpointFault

MAX_RETRY_AFTER_S = 60  # longest `Retry-After` for clients
RETRY_AFTER_S = 5  # the same, if the endpoint gives none
# parameters that clients can set
CHOSEN = ("stop", "seed", "top_p", "temperature", "response_format")


def request_error(error: EndpointError, *, body: Body) -> RequestError:
    """Return the error for the client whose request was sent as `body`.

    The status is 503 or 504 if a later request may succeed, 400 if the client must change its
    request, else 502.
    """
    if isinstance(error, EndpointTimeout):
        return RequestError(
            504, "endpoint_timeout", "the endpoint did not answer in time; retry later"
        )
    if isinstance(error, EndpointRetryable):
        seconds = min(max(math.ceil(error.retry_after_s or RETRY_AFTER_S), 1), MAX_RETRY_AFTER_S)
        headers = {"retry-after": str(seconds)}
        if isinstance(error, EndpointRateLimited):
            message = f"the endpoint accepts no more requests at present; retry in {seconds} s"
            return RequestError(503, "endpoint_busy", message, headers=headers)
        message = f"the endpoint cannot be reached, or it reports a failure; retry in {seconds} s"
        return RequestError(503, "endpoint_unreachable", message, headers=headers)
    if isinstance(error, EndpointRefused):
        return _refused(error.fault, body=body)
    return RequestError(
        502,
        "endpoint_failed",
        f"the endpoint failed ({type(error).__name__}); see the replica's log",
    )


def _refused(fault: EndpointFault, *, body: Body) -> RequestError:
    if fault.code == TOO_LONG:
        message = "the request is too long for the endpoint's model; shorten it or lower max_tokens"
        return RequestError(400, "too_long", message, code=TOO_LONG)
    if fault.code in CONTENT_CODES:
        return RequestError(
            400,
            "endpoint_refused",
            f"the endpoint refuses this content ({fault.code})",
            code=fault.code,
        )
    param = next((name for name in fault.parameters if name in CHOSEN and name in body), None)
    if param is not None:
        return RequestError(
            400,
            "endpoint_refused",
            f"{param}: the endpoint does not accept it; omit it",
            param=param,
        )
    return RequestError(
        502, "endpoint_refused", "the endpoint refuses the request; see the replica's log"
    )
