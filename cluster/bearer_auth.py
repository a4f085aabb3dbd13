"""Bearer authentication for `requests`, which overwrites a plain header if `~/.netrc` has an entry
for the host."""

from collections.abc import Callable

import requests

Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


def bearer(token: str) -> Auth:
    """Return the argument `auth` of a request that sends this token."""

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize
