"""The tasks that can be served, and how versions of each are deployed."""

from dataclasses import dataclass

RETRY_AFTER_S = 2  # `Retry-After` of requests that are refused with 429


@dataclass(frozen=True)
class ServedTask:
    """Deployment of the versions of one task."""

    deployment: str  # name of the Serve deployment
    route: str  # path that answers requests
    replica_class: str
    """Import path of the deployment's class, `module:name`; a string, so that a client imports no model library."""
    shutdown_s: float  # seconds that a stopping replica has to finish the answers that it has begun
    serves_pretrained: bool
    """Whether the pretrained model is served next to the champion; another chat model would take its memory again."""
    queues_requests: bool
    """Whether replicas queue requests themselves, and refuse what exceeds the queue in the task's own format."""
    actor_engines: frozenset[str] = frozenset()  # engines that run in actors of their own, which take the replica's GPU


SERVED_TASKS: dict[str, ServedTask] = {
    "classification": ServedTask(
        deployment="classifier",
        route="/v1/classify",
        replica_class="serving.replica.classifier:Classifier",
        shutdown_s=10,
        serves_pretrained=True,
        queues_requests=False,
    ),
    "chat": ServedTask(
        deployment="chat",
        route="/v1/chat/completions",
        replica_class="serving.replica.chat:Chat",
        shutdown_s=120,
        serves_pretrained=False,
        queues_requests=True,
        actor_engines=frozenset({"vllm"}),
    ),
}
"""By the `task` of a version or a recipe."""
