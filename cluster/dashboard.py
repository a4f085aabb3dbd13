"""REST requests to Ray's dashboard."""

import os
from typing import Any

import requests

from cluster.auth import DASHBOARD, HELP, SessionError, Unreachable, is_token_for, read_token
from cluster.bearer_auth import bearer
from cluster.certificates import verify


def use_dashboard(address: str | None) -> None:
    """Use the dashboard at `address`, unless it is None. An embedded stack's token is not sent to other dashboards."""
    if address is None:
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not is_token_for(path, address):
        del os.environ["RAY_AUTH_TOKEN_PATH"]  # Ray's own clients would send it too
    os.environ["RAY_API_SERVER_ADDRESS"] = address


def has_dashboard() -> bool:
    """Return True if the address of Ray's dashboard is set, even if it is not reachable."""
    return any(os.environ.get(name) for name in DASHBOARD)


def dashboard_url() -> str:
    """Return the address of Ray's dashboard; raise SessionError if it is not set."""
    address = next((os.environ[name] for name in DASHBOARD if os.environ.get(name)), "")
    if not address.startswith(("http://", "https://")):
        raise SessionError(
            f"RAY_API_SERVER_ADDRESS is {address!r}; set it to the dashboard's http:// address, or {HELP}"
        )
    return address.rstrip("/")


def request_dashboard(method: str, path: str, *, timeout_s: float = 60, body: Any = None) -> requests.Response:
    """Send a request with the token to Ray's dashboard. A body is sent as JSON, or unchanged if it is bytes.

    Raises SessionError if the token is refused, and Unreachable if the dashboard does not answer.
    """
    url, token = f"{dashboard_url()}{path}", read_token()
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    auth = bearer(token) if token else None
    try:
        answer = requests.request(method, url, auth=auth, timeout=timeout_s, verify=verify(), **sent)
    except requests.exceptions.SSLError as error:
        raise SessionError(
            f"the certificate of {dashboard_url()} is not trusted; set SSL_CERT_FILE to a file with its certificate "
            "authority"
        ) from error
    except requests.RequestException as error:
        raise Unreachable(f"Ray's dashboard is not reachable at {url} ({type(error).__name__}); {HELP}") from error
    if answer.status_code in (401, 403):
        problem = "refuses the token" if token else "requires a token, but none is set"
        raise SessionError(
            f"Ray's dashboard at {url} {problem}; set RAY_AUTH_TOKEN_PATH to the file with the token of the cluster, "
            "or set RAY_AUTH_TOKEN"
        )
    return answer
