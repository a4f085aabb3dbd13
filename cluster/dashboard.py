"""REST requests to Ray's dashboard."""

import io
import os
from typing import Any

import requests

from cluster.auth import DASHBOARD, HELP, SessionError, Unreachable, is_token_for, read_token
from cluster.bearer_auth import bearer
from cluster.certificates import verify

TIMEOUT_S = 60


def use_dashboard(address: str | None) -> None:
    """Use the dashboard at `address`, unless it is None. An embedded stack's token is not sent to
    other dashboards."""
    if address is None:
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not is_token_for(path, address):
        del os.environ["RAY_AUTH_TOKEN_PATH"]  # Ray's own clients would send it too
    os.environ[DASHBOARD] = address


def has_dashboard() -> bool:
    """Return True if the address of Ray's dashboard is set, even if it is not reachable."""
    return bool(os.environ.get(DASHBOARD))


def dashboard_url() -> str:
    """Return the address of Ray's dashboard; raise SessionError if it is not set."""
    address = os.environ.get(DASHBOARD, "")
    if not address.startswith(("http://", "https://")):
        raise SessionError(
            f"{DASHBOARD} is {address!r}; set it to the dashboard's http:// address, or {HELP}"
        )
    return address.rstrip("/")


def request_dashboard(method: str, path: str, *, body: Any = None) -> requests.Response:
    """Send a request with the token to Ray's dashboard. A body is sent as JSON, or unchanged if it
    is bytes.

    Raises SessionError if the token is refused, and Unreachable if the dashboard does not answer.
    """
    url = f"{dashboard_url()}{path}"
    token = read_token()
    # The time-out applies to each block that is read from a stream, but to bytes as a whole.
    is_stream = isinstance(body, bytes)
    stream = io.BytesIO(body) if is_stream else None
    as_json = None if is_stream else body
    auth = bearer(token) if token else None
    try:
        answer = requests.request(
            method,
            url,
            data=stream,
            json=as_json,
            auth=auth,
            timeout=TIMEOUT_S,
            verify=verify(),
        )
    except requests.exceptions.SSLError as error:
        raise SessionError(
            f"the certificate of {dashboard_url()} is not trusted; set SSL_CERT_FILE to a file "
            "with its certificate authority"
        ) from error
    except requests.RequestException as error:
        raise Unreachable(
            f"Ray's dashboard is not reachable at {url} ({type(error).__name__}); {HELP}"
        ) from error
    if answer.status_code in (401, 403):
        if token:
            problem = "refuses the token"
        else:
            problem = "requires a token, but none is set"
        raise SessionError(
            f"Ray's dashboard at {url} {problem}; set RAY_AUTH_TOKEN_PATH to the file with the "
            "token of the cluster, or set RAY_AUTH_TOKEN"
        )
    return answer
