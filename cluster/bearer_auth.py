"""A token as a request carries it, whatever `~/.netrc` says of the host: `requests` would put that in its place."""

from collections.abc import Callable

import requests

Carry = Callable[[requests.PreparedRequest], requests.PreparedRequest]


def bearer(token: str) -> Carry:
    """For the argument `auth` of a request."""

    def carry(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return carry
