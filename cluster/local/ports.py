"""Ports of the embedded stack. Each stack claims a block of consecutive ports."""

import random
import socket
from collections.abc import Iterable
from typing import Any

import psutil

from cluster.local.stack import StackError

# Blocks are below Linux's ephemeral port range, so outgoing connections do not use their ports.
# SeaweedFS also listens on each of its ports + 10,000 (gRPC).
FIRST_PORT = 11_000
LAST_PORT = 20_000
BLOCK = 256
GRPC_SHIFT = 10_000
S3, MASTER, VOLUME, FILER, ADMIN = range(5)
SERVE, HAPROXY_METRICS, HAPROXY_STATS = range(5, 8)
GCS, DASHBOARD, NODE_MANAGER, OBJECT_MANAGER, AGENT, RUNTIME_ENV_AGENT, RAY_CLIENT = range(8, 15)
METRICS, DASHBOARD_METRICS, SCALER_METRICS = range(15, 18)
FALLBACK_HTTP, FALLBACK_GRPC = range(18, 20)
REPLICAS_HTTP = 20
REPLICAS_GRPC = 120
NUM_REPLICA_PORTS = 100
CLAIM = 255

SEAWEEDFS = {"s3": S3, "master": MASTER, "volume": VOLUME, "filer": FILER, "admin": ADMIN}
"""Port offsets of SeaweedFS's servers, by their name in its options."""
RAY_START = {
    "port": GCS,
    "dashboard-port": DASHBOARD,
    "node-manager-port": NODE_MANAGER,
    "object-manager-port": OBJECT_MANAGER,
    "dashboard-agent-listen-port": AGENT,
    "runtime-env-agent-port": RUNTIME_ENV_AGENT,
    "ray-client-server-port": RAY_CLIENT,
    "metrics-export-port": METRICS,
}
"""Port offsets by the option of `ray start`."""
VARIABLES = {
    "DASHBOARD_METRIC_PORT": DASHBOARD_METRICS,
    "AUTOSCALER_METRIC_PORT": SCALER_METRICS,
    "RAY_SERVE_HAPROXY_METRICS_PORT": HAPROXY_METRICS,
    "RAY_SERVE_HAPROXY_STATS_PORT": HAPROXY_STATS,
    # HAProxy uses the fallback proxy while the only replica of an application switches its version.
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": FALLBACK_HTTP,
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": FALLBACK_GRPC,
    "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": REPLICAS_HTTP,
    "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": REPLICAS_HTTP + NUM_REPLICA_PORTS,
    "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": REPLICAS_GRPC,
    "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": REPLICAS_GRPC + NUM_REPLICA_PORTS,
}
"""Port offsets by the environment variable of Ray."""


def claim_ports() -> tuple[int, socket.socket]:
    """Return the first port of a free block, and the socket that claims the block by binding its
    last port."""
    bases = list(range(FIRST_PORT, LAST_PORT, BLOCK))
    random.shuffle(bases)
    taken = {
        connection.laddr.port for connection in psutil.net_connections("tcp") if connection.laddr
    }
    for base in bases:
        wanted = {
            *range(base, base + BLOCK),
            *range(base + GRPC_SHIFT, base + GRPC_SHIFT + ADMIN + 1),
        }
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", base + CLAIM))
        except OSError:
            claim.close()
            continue
        if not wanted & taken:
            claim.listen()
            return base, claim
        claim.close()
    raise StackError(
        f"no block of {BLOCK} ports is free between {FIRST_PORT} and {LAST_PORT}; stop processes "
        "that use them"
    )


def listening(pid: int) -> set[int]:
    """Return the TCP ports on which this process listens; an empty set if it has ended."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    return listening_ports(connections)


def listening_ports(connections: Iterable[Any]) -> set[int]:
    """Return the ports of the connections of psutil that wait for clients."""
    return {
        item.laddr.port for item in connections if item.laddr and item.status == psutil.CONN_LISTEN
    }
