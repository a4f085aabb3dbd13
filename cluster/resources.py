"""Nodes and resource holders of a Ray cluster, and the number of workers that fit."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster import ray_private
from tailorbird.config.serving import ServingConfig
from tailorbird.config.training import TrainingConfig

REACH_TIMEOUT_S = 5
MAX_LISTED = 1000  # maximum number of actors or placement groups in a response of Ray's state API
MAX_NAMED = 3  # maximum number of holders in a message
UNBOUNDED = 1000  # number of workers without a limit


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of a node, or those that a task requires."""

    cpus: float
    gpus: float = 0.0

    def text(self) -> str:
        """Return text such as `2 CPUs and 1 GPU`."""
        texts = []
        for amount, name in ((self.cpus, "CPU"), (self.gpus, "GPU")):
            if amount:
                plural = "" if amount == 1 else "s"
                texts.append(f"{amount:g} {name}{plural}")
        return " and ".join(texts)

    def num_workers(self, worker: "Resources") -> int:
        """Return the number of workers with these resources that fit a node with the resources
        `self`."""
        number = UNBOUNDED
        for total, required in ((self.cpus, worker.cpus), (self.gpus, worker.gpus)):
            if required:
                number = min(number, int(total / required + 1e-6))
        return number


def gpu_visibility(gpus: float) -> dict[str, str]:
    """Return the environment variables of a process with `gpus` GPUs. Without a GPU, the process
    sees none.

    Ray assigns GPUs through CUDA_VISIBLE_DEVICES, but does not set it for a process without GPUs,
    which would see all GPUs of the node. Tasks and actors that the process starts inherit the
    value, so Ray cannot give them a GPU.
    """
    if gpus:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ""}


def worker_resources(config: TrainingConfig) -> Resources:
    return Resources(config.cpus_per_worker, config.gpus_per_worker)


def evaluation_resources(training: TrainingConfig, serving: ServingConfig) -> Resources:
    """Return the resources of an evaluation: predictions of test rows, or the cost measurement.

    They are those of a training worker. If replicas have GPUs, they are also at least those of a
    replica, with whole GPUs: nothing else must use them meanwhile.
    """
    worker = worker_resources(training)
    if not serving.gpus_per_replica:
        return worker
    return Resources(
        max(worker.cpus, serving.cpus_per_replica), math.ceil(serving.gpus_per_replica)
    )


@dataclass(frozen=True)
class Node:
    id: str
    address: str
    is_head: bool
    total: Resources
    free: Resources
    memory_bytes: int = 0  # memory that Ray assigns to tasks and actors


@dataclass(frozen=True)
class Holder:
    """An actor, placement group or task that holds CPUs or GPUs."""

    name: str
    resources: Resources


def workers_that_fit(nodes: Iterable[Resources], worker: Resources) -> int:
    """Return the number of workers that fit nodes with these resources. A worker does not span
    nodes."""
    return sum(node.num_workers(worker) for node in nodes)


def live_nodes() -> tuple[Node, ...]:
    """Return the live nodes of the connected cluster, the head node first."""
    import ray

    free = ray_private.free_resources_by_node()
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            nodes.append(
                Node(
                    id=node["NodeID"],
                    address=node["NodeManagerAddress"],
                    is_head=ray_private.HEAD_RESOURCE in resources,
                    total=_resources(resources),
                    free=_resources(free.get(node["NodeID"], {})),
                    memory_bytes=int(resources.get("memory", 0)),
                )
            )
    return tuple(sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id)))


def holders() -> tuple[Holder, ...]:
    """Return the actors, placement groups and tasks that hold CPUs or GPUs, the largest first.

    A placement group or task has the name of its command if that is a verb of Tailorbird.
    """
    from ray.util.state import list_actors, list_jobs, list_placement_groups, list_tasks

    commands = {job.job_id: command_name(job.entrypoint) for job in list_jobs(limit=MAX_LISTED)}
    listed = []
    for actor in list_actors(filters=[("state", "=", "ALIVE")], detail=True, limit=MAX_LISTED):
        if not actor.placement_group_id:
            name = actor.name or actor.class_name
            listed.append(Holder(name, _resources(actor.required_resources or {})))
    created = [("state", "=", "CREATED")]
    for group in list_placement_groups(filters=created, detail=True, limit=MAX_LISTED):
        bundles = [_resources(bundle.get("unit_resources", {})) for bundle in group.bundles or ()]
        total = Resources(
            sum(bundle.cpus for bundle in bundles), sum(bundle.gpus for bundle in bundles)
        )
        name = commands.get(group.creator_job_id) or group.name or "a placement group"
        listed.append(Holder(name, total))
    running = [("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")]
    for task in list_tasks(filters=running, detail=True, limit=MAX_LISTED):
        if not task.placement_group_id:
            name = commands.get(task.job_id) or task.name
            listed.append(Holder(name, _resources(task.required_resources or {})))
    holding = [holder for holder in listed if holder.resources.cpus or holder.resources.gpus]
    holding.sort(key=lambda holder: (-holder.resources.gpus, -holder.resources.cpus, holder.name))
    return tuple(holding)


def holders_or_none() -> tuple[Holder, ...] | None:
    """Return the holders, or None if the dashboard does not answer."""
    with suppress(Exception):
        return holders()
    return None


def command_name(entrypoint: str) -> str | None:
    """Return a command such as `tailorbird run recipe.yaml` for the process of a job; None for
    other programs.

    Other programs could have a secret in their arguments.
    """
    words = entrypoint.split()
    for number, word in enumerate(words):
        if word.endswith(("tailorbird", "tailorbird/__main__.py")):
            return " ".join(("tailorbird", *words[number + 1 : number + 3]))
    return None


def held_by(holders: Sequence[Holder] | None) -> str:
    """Return who holds resources, at most three holders."""
    if holders is None:
        return "held by unknown processes, because the dashboard does not answer"
    if not holders:
        return "which Ray is about to assign"
    names = ", ".join(
        f"`{holder.name}` ({holder.resources.text()})" for holder in holders[:MAX_NAMED]
    )
    if len(holders) > MAX_NAMED:
        return f"held by {names} and {len(holders) - MAX_NAMED} more"
    return f"held by {names}"


def is_waiting(result: Any) -> bool:
    """True if the task of this ObjectRef waits for resources; False if it has started or its state
    is unknown."""
    from ray.util.state import get_task

    with suppress(Exception):
        attempts = get_task(result, timeout=REACH_TIMEOUT_S)
        last = attempts[-1] if isinstance(attempts, list) else attempts
        return bool(last.state == "PENDING_NODE_ASSIGNMENT")
    return False


def _resources(amounts: Any) -> Resources:
    return Resources(float(amounts.get("CPU", 0)), float(amounts.get("GPU", 0)))
