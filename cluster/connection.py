"""Connect to the running Ray and S3, by the environment or by the embedded stack of a folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.auth import HELP, SessionError
from cluster.local import stack
from cluster.remote import LOCAL

REACH_TIMEOUT_S = 5
_CONFIGURED_BY = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")


def use_stack(folder: Path) -> None:
    """Set the environment of the folder's running stack in `os.environ`, unless Ray or S3 are configured there."""
    if any(os.environ.get(name) for name in _CONFIGURED_BY):
        return
    state = stack.status(folder)
    if state is not None:
        for name, value in state.environment().items():
            os.environ.setdefault(name, value)


@contextmanager
def connect(**arguments: Any) -> Iterator[None]:
    """Connect this process to the running Ray (`arguments` go to `ray.init`) and disconnect at the end.

    Inside a Ray job, or if the process is connected already, that connection is used. Raises SessionError within
    seconds if no Ray answers.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise SessionError(f"no Ray is configured (RAY_ADDRESS is not set); {HELP}")
    _require_reachable(address)
    try:
        ray.init(address=address, **{"log_to_driver": False, "configure_logging": False, **arguments})
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise SessionError(
            f"Ray at {address} does not let us in ({error}); check RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or {HELP}"
        ) from error
    except OSError as error:  # a Ray of this process's own writes its token and its logs
        raise SessionError(
            f"Ray at {address} does not start ({error}); it writes to ~/.ray and /tmp: set HOME to a folder that can "
            "be written, and mind the room there"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise SessionError if nothing answers within seconds; `ray.init` would wait for minutes."""
    if address in ("auto", LOCAL):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 10001), timeout=REACH_TIMEOUT_S):
            return
    except (OSError, ValueError) as error:
        raise SessionError(f"Ray is not reachable at {address} ({error}); {HELP}") from None
