"""REST requests to Ray's dashboard."""

import os
from typing import Any

import requests

from cluster.auth import DASHBOARD, HELP, SessionError, read_token
from cluster.bearer_auth import bearer
from cluster.certificates import verify

TIMEOUT_S = 60


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
    """Send a request with the token, and the body as JSON, to Ray's dashboard.

    Raises SessionError if the token is refused or the dashboard does not answer.
    """
    url = f"{dashboard_url()}{path}"
    token = read_token()
    auth = bearer(token) if token else None
    try:
        answer = requests.request(
            method,
            url,
            json=body,
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
        raise SessionError(
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
