"""Connect to Ray and S3, configured by the environment or by the embedded stack of a folder."""

import os
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from cluster.auth import HELP, SessionError
from cluster.local import stack
from cluster.remote import LOCAL

REACH_TIMEOUT_S = 5
TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM ended, as shells report it."""
_CONFIGURED_BY = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
)


def use_stack(folder: Path) -> None:
    """Set the environment variables of the folder's running stack, unless Ray or S3 are already
    configured."""
    if any(os.environ.get(name) for name in _CONFIGURED_BY):
        return
    state = stack.status(folder)
    if state is not None:
        for name, value in state.environment().items():
            os.environ.setdefault(name, value)


def stack_hint(folder: Path) -> str | None:
    """Return which stack can be used, and how; None if the stack of `folder` is running, or if Ray
    or S3 are configured."""
    if any(os.environ.get(name) for name in _CONFIGURED_BY) or stack.status(folder) is not None:
        return None
    if (folder / stack.KEYS_FILE).exists():
        return f"the stack of {folder} is not running; run `tailorbird stack up` to start it"
    running = stack.running_folders()
    if running:
        known = " and ".join(map(str, running))
        return (
            f"this folder has no stack, but one is running in {known}; to use it: "
            f"export TAILORBIRD_HOME={shlex.quote(str(running[0]))}"
        )
    return (
        "no S3 server is configured: run `tailorbird stack up` to start one, or set "
        "AWS_ENDPOINT_URL or the credentials of AWS"
    )


@contextmanager
def connect(**arguments: Any) -> Iterator[None]:
    """Connect this process to the running Ray, and disconnect at the end. `arguments` are passed to
    `ray.init`.

    An existing connection of the process, as in a Ray job, is used and kept. During the block,
    SIGTERM raises Terminated. Raises SessionError within seconds if Ray does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise SessionError(f"no Ray cluster is configured (RAY_ADDRESS is not set); {HELP}")
    _require_reachable(address)
    with sigterm_raises() as set_handler:
        _init_ray(address, arguments)
        set_handler()
        try:
            yield
        finally:
            ray.shutdown()


def _init_ray(address: str, arguments: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(
            address=address, **{"log_to_driver": False, "configure_logging": False, **arguments}
        )
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise SessionError(
            f"Ray at {address} refuses the connection ({error}); check RAY_AUTH_TOKEN or "
            f"RAY_AUTH_TOKEN_PATH, or {HELP}"
        ) from error
    except (
        OSError
    ) as error:  # with RAY_ADDRESS=local, Ray writes its token and logs to this machine
        raise SessionError(
            f"Ray at {address} does not start ({error}); it needs write access and free space in "
            "~/.ray and /tmp. Set HOME to a writable folder, or free disk space"
        ) from error


class Terminated(SystemExit):
    """This process received SIGTERM. If nothing handles it, the process exits with TERMINATED."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def sigterm_raises() -> Iterator[Callable[[], None]]:
    """Interrupt the block at the first SIGTERM, and raise Terminated at its end; a second one ends
    the process at once.

    Within the block, SIGTERM raises KeyboardInterrupt, because `ray.get` ends the process for other
    exceptions of a handler. Yields a function that sets the handler again. Call it after
    `ray.init`, because Ray's core worker replaces the handler by one that prints a C++ stack trace
    and aborts. In another thread, do nothing, because Python sets handlers only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    previous = signal.getsignal(signal.SIGTERM)
    is_terminated = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        is_terminated.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    def set_handler() -> None:
        signal.signal(signal.SIGTERM, interrupt)

    set_handler()
    try:
        yield set_handler
    except KeyboardInterrupt:
        if is_terminated.is_set():
            raise Terminated from None
        raise
    finally:
        # None is a handler that was not set from Python, which cannot be set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _require_reachable(address: str) -> None:
    """Raise SessionError if the address does not accept a connection. `ray.init` would wait for
    minutes."""
    if address in ("auto", LOCAL):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection(
            (parts.hostname or "", parts.port or 10001), timeout=REACH_TIMEOUT_S
        ):
            return
    except (OSError, ValueError) as error:
        raise SessionError(f"Ray is not reachable at {address} ({error}); {HELP}") from None
