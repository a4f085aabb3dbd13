"""Ray's authentication token: its source, and the dashboards to which it may be sent."""

import os
from pathlib import Path

from cluster.local import stack

DASHBOARD = "RAY_API_SERVER_ADDRESS"
HELP = "run `tailorbird stack up`, or set RAY_ADDRESS to a running cluster"


class SessionError(ValueError):
    """A failure to reach Ray. The message contains the address and the next step."""


def is_token_for(token_path: str, address: str) -> bool:
    """Return True if the token may be sent to the dashboard at `address`.

    The token of an embedded stack may be sent only to the stack's own dashboard. The path of the
    token shows whether it belongs to a stack, in any working directory and even if the stack is not
    running.
    """
    path = Path(token_path).resolve()
    marked = os.environ.get(stack.OWN_DASHBOARD)
    if path.name != stack.TOKEN_FILE or not (marked or (path.parent / stack.KEYS_FILE).exists()):
        return True
    state = stack.status(path.parent)
    dashboards = {marked, state.dashboard_url if state is not None else None}
    return address.rstrip("/").replace("//localhost:", "//127.0.0.1:") in dashboards


def read_token() -> str:
    """Return the token for the dashboard in the environment; empty if there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    address = os.environ.get(DASHBOARD)
    if token or not path or (address and not is_token_for(path, address)):
        return token
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SessionError(
            f"RAY_AUTH_TOKEN_PATH is {path}: {error.strerror}; set it to the file with the token"
        ) from None
