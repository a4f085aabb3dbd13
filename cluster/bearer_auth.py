"""A bearer token for `requests`, which would otherwise replace it by an entry for the host in `~/.netrc`."""

from collections.abc import Callable

import requests

Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


def bearer(token: str) -> Auth:
    """Return a value for the argument `auth` of a request."""

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize
