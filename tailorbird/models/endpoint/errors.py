"""Errors of external endpoints. Each class is a cause; no message contains an API key or the text
of a request."""

from tailorbird.models.endpoint.fault import EndpointFault
from tailorbird.models.errors import ModelError


class EndpointError(ModelError):
    """A request to an endpoint failed."""


class EndpointKeyMissing(EndpointError):
    """The environment variable with the API key is not set in this process."""


class EndpointRetryable(EndpointError):
    """A request that may succeed if it is sent again."""

    retry_after_s: float | None = None  # seconds to wait, from the `Retry-After` header


class EndpointUnreachable(EndpointRetryable):
    """There is no connection, it was closed, or the endpoint reports a failure of its own (5xx)."""


class EndpointTimeout(EndpointRetryable):
    """There was no complete answer in time."""


class EndpointConnectTimeout(EndpointTimeout):
    """The endpoint did not accept a connection in time, so it has not received the request."""


class EndpointRateLimited(EndpointRetryable):
    """The endpoint refused the request because of a rate limit or a quota (429)."""


class EndpointKeyRefused(EndpointError):
    """The endpoint refused the API key (401 or 403)."""


class EndpointRefused(EndpointError):
    """The endpoint refused the request for another reason, such as an unknown model or a text that
    is too long."""

    fault: EndpointFault = EndpointFault()


class EndpointAnswerInvalid(EndpointError):
    """The answer is not a chat completion."""


class EndpointAnswersMissing(EndpointError):
    """Too many rows have no usable answer, so a comparison would not be one of the models."""


class EndpointModelChanged(EndpointError):
    """The endpoint answered with another model than before."""


class EndpointSpendExceeded(EndpointError):
    """A further request could cost more than `max_spend` allows."""
