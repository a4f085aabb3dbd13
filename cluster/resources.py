"""What a Ray cluster is: its versions, nodes, what it may grow by, who holds what; and how many workers that takes."""

import json
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = "node:__internal_head__"
REACH_TIMEOUT_S = 5
MANY = 1000
"""Actors and placement groups that are looked at."""


@dataclass(frozen=True)
class Versions:
    """Of Ray and of Python, as `2.60.0` and `3.11.2`."""

    ray: str
    python: str


@dataclass(frozen=True)
class Room:
    """CPUs and GPUs of one node."""

    cpus: float
    gpus: float = 0.0

    def holds(self, worker: "Room") -> int:
        """How many such workers fit on it."""
        fits = [MANY if not asked else int(have / asked + 1e-6) for have, asked in self._beside(worker)]
        return min(fits)

    def _beside(self, worker: "Room") -> tuple[tuple[float, float], ...]:
        return (self.cpus, worker.cpus), (self.gpus, worker.gpus)


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    id: str
    address: str
    is_head: bool
    has: Room
    free: Room


@dataclass(frozen=True)
class NodeType:
    """What an autoscaler starts more of."""

    name: str
    has: Room
    max_nodes: int | None
    """At most; None where there is no bound."""
    max_of_all: int | None = None
    """Nodes of all types together, at most; None where the cluster has no such bound."""


@dataclass(frozen=True)
class Holder:
    """What holds CPUs or GPUs now."""

    what: str
    room: Room


def workers_that_fit(rooms: Iterable[Room], worker: Room) -> int:
    """Workers that nodes with this much room take, each on one node."""
    return sum(room.holds(worker) for room in rooms)


def workers_of_types(types: Sequence[NodeType], worker: Room) -> int:
    """Workers that an autoscaler's node types take at most; each on one node, the roomiest types first."""
    left = min((MANY if one.max_of_all is None else one.max_of_all for one in types), default=0)
    workers = 0
    for one in sorted(types, key=lambda one: -one.has.holds(worker)):
        nodes = min(left, MANY if one.max_nodes is None else one.max_nodes)
        workers, left = workers + nodes * one.has.holds(worker), left - nodes
    return workers


def local_versions() -> Versions:
    """Of this process."""
    import platform

    import ray

    return Versions(ray.__version__, platform.python_version())


def cluster_versions(address: str) -> Versions | None:
    """What the cluster was started with, from its GCS, without joining it; None through Ray's client port.

    Raises what Ray raises where it refuses the token or does not answer.
    """
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon:
        return None
    with socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S):  # Ray itself would wait for minutes
        pass
    from ray._common.usage import usage_constants
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    told = GcsClient(address=address).internal_kv_get(
        usage_constants.CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER, timeout=10
    )
    if told is None:
        return None
    metadata = json.loads(told)
    return Versions(metadata["ray_version"], metadata["python_version"])


def live_nodes() -> tuple[Node, ...]:
    """The nodes of the cluster that this process is connected to, the head first."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    nodes = [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            is_head=HEAD in node["Resources"],
            has=_room(node["Resources"]),
            free=_room(free.get(node["NodeID"], {})),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return tuple(sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id)))


def told_node_types() -> tuple[NodeType, ...] | None:
    """Node types and their bounds, where the cluster's autoscaler told them to GCS; None where none did.

    Ray keeps a place for them, which its own autoscalers leave empty up to 2.60 at least.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    return tuple(
        NodeType(group.name, _room(group.resources), None if group.max_count < 0 else group.max_count)
        for group in config.node_group_configs
    )


def node_types_of(content: Any) -> tuple[NodeType, ...]:
    """Those of a cluster's file as `ray up` takes it, read as YAML; a type without named resources is left out."""
    types = content.get("available_node_types") if isinstance(content, dict) else None
    most = content.get("max_workers", 2) if types else 0  # Ray's default for the whole cluster
    return tuple(
        NodeType(name, _room(one["resources"]), min(most, one.get("max_workers", most)), max_of_all=most)
        for name, one in (types or {}).items()
        if one.get("resources")
    )


def holders() -> tuple[Holder, ...]:
    """Actors and placement groups that hold CPUs or GPUs now, the largest first; asks the dashboard's API."""
    from ray.util.state import list_actors, list_placement_groups

    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True, limit=MANY)
    inside: dict[str, list[str]] = {}
    found = []
    for actor in alive:
        name, group = actor.name or actor.class_name, actor.placement_group_id
        if group:
            inside.setdefault(group, []).append(name)
        else:
            found.append(Holder(name, _room(actor.required_resources or {})))
    for group in list_placement_groups(filters=[("state", "=", "CREATED")], detail=True, limit=MANY):
        names = inside.get(group.placement_group_id, [])
        what = group.name or (", ".join(dict.fromkeys(names)) if names else "a placement group")
        rooms = [_room(bundle.get("unit_resources", {})) for bundle in group.bundles or ()]
        found.append(Holder(what, Room(sum(room.cpus for room in rooms), sum(room.gpus for room in rooms))))
    held = [one for one in found if one.room.cpus or one.room.gpus]
    return tuple(sorted(held, key=lambda one: (-one.room.gpus, -one.room.cpus, one.what)))


def _room(resources: Any) -> Room:
    return Room(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))
