"""The tasks that can be served, and their deployments."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from tailorbird.data.rows import Conversation, messages_of, query_of

RETRY_AFTER_S = 2  # `Retry-After` of responses with status 429


@dataclass(frozen=True)
class ServedTask:
    """The deployment of the versions of one task."""

    deployment: str  # name of the Serve deployment
    route: str  # path of the prediction route
    replica_class: str
    """Import path of the deployment's class, `module:name`. A string, so that clients import no
    model library."""
    shutdown_s: float  # time for a stopping replica to finish its requests, in seconds
    serves_baseline: bool
    """True if every baseline is served alongside the champion. Otherwise one is only served if it
    needs no further language model, which would double the memory."""
    request: Callable[[Conversation], dict[str, JsonValue]]  # fields of a request with these turns
    # engines that run in separate actors, which use the replica's GPU
    actor_engines: frozenset[str] = frozenset()


SERVED_TASKS: dict[str, ServedTask] = {
    "classification": ServedTask(
        deployment="classifier",
        route="/v1/classify",
        replica_class="serving.replica.classifier:Classifier",
        shutdown_s=10,
        serves_baseline=True,
        request=lambda turns: {"input": query_of(turns), "scores": True},
    ),
    "chat": ServedTask(
        deployment="chat",
        route="/v1/chat/completions",
        replica_class="serving.replica.chat:Chat",
        shutdown_s=120,
        serves_baseline=False,
        request=lambda turns: {"messages": messages_of(turns)},
        actor_engines=frozenset({"vllm"}),
    ),
}
"""Served tasks, by the `task` of a version or a recipe."""
