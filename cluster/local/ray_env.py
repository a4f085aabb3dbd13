"""Environment of the embedded stack's processes: credentials, ports and HAProxy settings."""

import json
import os
import secrets
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from cluster.local import haproxy, ports
from cluster.local.stack import KEYS_FILE, OWN_DASHBOARD, TOKEN_FILE
from tailorbird import storage

CLUSTER_SETTINGS = haproxy.HAPROXY_SETTINGS | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    # Serve's fallback proxy takes the client's address from the connection and not from
    # X-Forwarded-For.
    "FORWARDED_ALLOW_IPS": "",
}
"""Settings for all Ray clusters. Tests check that cluster/ray_up/node.env and k8s/base/settings
contain the same."""

HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
"""Names of HAProxy's files by the environment variable of Ray."""


@dataclass(frozen=True)
class Keys:
    """Credentials of the stack. They are stored in its folder and remain the same after a
    restart."""

    access_key: str
    secret_key: str
    token_path: Path


def stack_keys(folder: Path) -> Keys:
    """Return the credentials of the folder, created at the first call."""
    path = folder / KEYS_FILE
    token_path = folder / TOKEN_FILE
    if not path.exists():
        write_private(
            path,
            json.dumps({"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}),
        )
    if not token_path.exists():
        write_private(token_path, secrets.token_hex(32))
    return Keys(token_path=token_path, **json.loads(path.read_text()))


def environment(base: int, *, folder: Path, temp_dir: Path, keys: Keys) -> dict[str, str]:
    """Return the environment of Ray's processes, which workers inherit."""
    port_settings = {name: str(base + offset) for name, offset in ports.VARIABLES.items()}
    file_settings = {name: str(temp_dir / "haproxy" / file) for name, file in HAPROXY_FILES.items()}
    return {
        **CLUSTER_SETTINGS,
        **port_settings,
        **file_settings,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{base + ports.S3}",
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": "us-east-1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(keys.token_path),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{base + ports.DASHBOARD}",
        OWN_DASHBOARD: f"http://127.0.0.1:{base + ports.DASHBOARD}",
        # On a loaded machine, the dashboard takes longer than Ray's own time-outs; Ray then
        # continues without it.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "120",
        # There is no other node to drain to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # `python` in the entrypoint of a job is the interpreter of this environment.
        "PATH": os.pathsep.join(
            (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
        ),
        "TAILORBIRD_JOURNAL": str(folder.resolve() / "request-log"),
        "TAILORBIRD_SERVE_URL": f"http://127.0.0.1:{base + ports.SERVE}",
        haproxy.PROGRAM: haproxy.__file__,
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # the default of 30 is for external load balancers
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }


def write_private(path: Path, text: str) -> None:
    """Write a file atomically that only its owner can read."""
    storage.write_bytes(path.as_uri(), text.encode())
