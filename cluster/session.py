"""How a process finds the running Ray and S3: by the environment, or by the embedded stack of a folder."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from cluster import stack
from cluster.bearer import bearer
from recipes.schema import TrainingSection

REACH_TIMEOUT_S = 5
SETTLED_S = 2.0
DASHBOARD = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
LOCAL = "local"
"""As RAY_ADDRESS it has `ray.init` start a Ray of the process's own, on this machine alone."""
_GIVEN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
_HELP = "start one with `tailorbird stack up`, or set RAY_ADDRESS to a running one"


class SessionError(ValueError):
    """Ray cannot be reached; the message says where it was looked for and what to do."""


class Unreachable(SessionError):
    """Nothing answers at the dashboard's address, now: asked again later, it may."""


def use_stack(folder: Path) -> None:
    """Puts the environment of the folder's running stack into `os.environ`, unless Ray or S3 are configured there."""
    if any(os.environ.get(name) for name in _GIVEN):
        return
    state = stack.status(folder)
    if state is not None:
        for name, value in state.environment().items():
            os.environ.setdefault(name, value)


def use_dashboard(address: str | None) -> None:
    """Has this process ask the dashboard at `address`, where one is given; an embedded stack's token stays with it."""
    if address is None:
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not _is_for(path, address):
        del os.environ["RAY_AUTH_TOKEN_PATH"]  # from Ray's own clients too
    os.environ["RAY_API_SERVER_ADDRESS"] = address


def _is_for(token_path: str, address: str) -> bool:
    """Whether the token may be shown to the dashboard at `address`: a stack's is for its own dashboard alone.

    A stack's token is known by where it lies, whatever folder this process works in and whether the stack runs or not.
    """
    place, marked = Path(token_path).resolve(), os.environ.get(stack.OWN_DASHBOARD)
    if place.name != stack.TOKEN_FILE or not (marked or (place.parent / stack.KEYS_FILE).exists()):
        return True
    state = stack.status(place.parent)
    own = {marked, state.dashboard_url if state is not None else None}
    return address.rstrip("/").replace("//localhost:", "//127.0.0.1:") in own


@contextmanager
def connect(**arguments: Any) -> Iterator[None]:
    """Connects this process to the running Ray (`arguments` go to `ray.init`) and disconnects at the end.

    Inside a Ray job or where the process is connected already, that connection is used. Raises SessionError, within
    seconds, if no Ray answers.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise SessionError(f"no Ray is configured (RAY_ADDRESS is not set); {_HELP}")
    _require_reachable(address)
    try:
        ray.init(address=address, **{"log_to_driver": False, "configure_logging": False, **arguments})
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise SessionError(
            f"Ray at {address} does not let us in ({error}); check RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or {_HELP}"
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


def has_dashboard() -> bool:
    """Whether the environment names Ray's dashboard, reachable or not."""
    return any(os.environ.get(name) for name in DASHBOARD)


def dashboard_url() -> str:
    """Address of Ray's dashboard, which takes jobs and Serve applications; raises SessionError if none is set."""
    address = next((os.environ[name] for name in DASHBOARD if os.environ.get(name)), "")
    if not address.startswith(("http://", "https://")):
        raise SessionError(
            f"RAY_API_SERVER_ADDRESS is {address!r}; set it to the dashboard's http:// address, or {_HELP}"
        )
    return address.rstrip("/")


def auth_headers() -> dict[str, str]:
    """HTTP headers that open Ray's dashboard: empty without RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH."""
    token = _token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token() -> str:
    """What opens the dashboard that the environment names; empty where nothing does."""
    token, path = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH")
    address = next((os.environ[name] for name in DASHBOARD if os.environ.get(name)), "")
    if token or not path or (address and not _is_for(path, address)):
        return token
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SessionError(f"RAY_AUTH_TOKEN_PATH is {path}: {error.strerror}; give the token's file") from None


def request_dashboard(method: str, path: str, *, timeout_s: float = 60, body: Any = None) -> requests.Response:
    """One request to Ray's dashboard, with the token; a body goes as JSON, or as it is if it is bytes.

    Raises SessionError if the token is refused, and Unreachable if nothing answers.
    """
    url, token = f"{dashboard_url()}{path}", _token()
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    try:
        answer = requests.request(method, url, auth=bearer(token) if token else None, timeout=timeout_s, **sent)
    except requests.RequestException as error:
        raise Unreachable(f"Ray's dashboard is not reachable at {url} ({type(error).__name__}); {_HELP}") from error
    if answer.status_code in (401, 403):
        how = "refuses the token" if token else "asks for a token, and none is set"
        raise SessionError(
            f"Ray's dashboard at {url} {how}; set RAY_AUTH_TOKEN_PATH to the file with the cluster's, or RAY_AUTH_TOKEN"
        )
    return answer


def _require_reachable(address: str) -> None:
    """A bounded look at the address before `ray.init`, which waits for minutes."""
    if address in ("auto", LOCAL):
        return
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((place.hostname or "", place.port or 10001), timeout=REACH_TIMEOUT_S):
            return
    except (OSError, ValueError) as error:
        raise SessionError(f"Ray is not reachable at {address} ({error}); {_HELP}") from None


def remotely(function: Callable[..., Any], training: TrainingSection) -> Callable[..., Any]:
    """The function as a Ray task on a node with a worker's CPUs and GPUs; a call waits for its value."""
    import ray

    task = ray.remote(function)

    def call(*arguments: Any, **named: Any) -> Any:
        has = ray.cluster_resources() if os.environ.get("RAY_ADDRESS") == LOCAL else None
        try:
            return ray.get(task.options(**room_asked(training, has=has)).remote(*arguments, **named))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the error itself: its dual's text is the remote traceback

    return call


def room_asked(training: TrainingSection, *, has: Mapping[str, float] | None) -> dict[str, float]:
    """CPUs and GPUs that a task asks for: a worker's, but no more than a Ray `has` that will never have more.

    None stands for a Ray to which nodes may come. A Ray in a pod of its own has one node, and a task that asks for more
    would wait for ever.
    """
    asked = {"num_cpus": ("CPU", training.cpus_per_worker), "num_gpus": ("GPU", training.gpus_per_worker)}
    return {key: float(most if has is None else min(most, has.get(name, 0.0))) for key, (name, most) in asked.items()}


def on_this_node() -> dict[str, str]:
    """A label selector for what this process cannot do without: it goes with this node, and with no other.

    Ray puts what needs no CPU on any node, and the loss of that one would end work that it had no part in.
    """
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def note_shortage(num_cpus: int, *, what: str, show: Callable[[dict[str, Any]], None]) -> None:
    """Says so where `what` will have to wait for CPUs; those of a task that just ended are free a moment later."""
    import ray

    deadline = time.monotonic() + SETTLED_S
    while (free := ray.available_resources().get("CPU", 0.0)) < num_cpus and time.monotonic() < deadline:
        time.sleep(0.1)
    if free < num_cpus:
        text = f"{what} needs {num_cpus} CPUs and {free:g} are free: it waits for a service or job to end, or for nodes"
        show({"event": "note", "text": text})
