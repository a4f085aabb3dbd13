"""Check that the disruption budgets of a service let nodes be drained."""

import math

from tailorbird.config.serving import ServingConfig
from tailorbird.release.kube_documents import Document, RenderError


def require_drainable(
    documents: list[Document], *, serving: ServingConfig, per_pod: int
) -> tuple[list[Document], tuple[str, ...]]:
    """Return the documents with the budgets that a drain can satisfy, and notes about the others.

    `per_pod` is the number of replicas that a worker pod holds. A worker pod is ready only while it
    has a replica, so a budget for workers counts the pods with replicas. Raise RenderError if the
    smallest number of such pods is not larger than a budget, because the eviction API would then
    refuse every drain. A service that scales to zero accepts an interruption; its budget for
    workers is omitted.
    """
    budgets = [document for document in documents if document.get("kind") == "PodDisruptionBudget"]
    guarded = {
        node_type: [each for each in budgets if _selects(each, node_type)]
        for node_type in ("worker", "head")
    }
    notes = tuple(
        f"the PodDisruptionBudget {_name(budget)} refuses to evict the head, which has no copy of "
        "its state; to drain its node, delete the budget, and apply the manifest again afterwards"
        for budget in guarded["head"]
    )
    if serving.min_replicas == 0:
        names = [_name(budget) for budget in guarded["worker"]]
        remaining = [document for document in documents if document not in guarded["worker"]]
        omitted = (
            f"the PodDisruptionBudget {name} is omitted, because it would refuse to drain the node "
            "of the only replica; delete it from the cluster if it exists"
            for name in names
        )
        return remaining, (*notes, *omitted)
    pods = math.ceil(serving.min_replicas / per_pod)
    for budget in guarded["worker"]:
        least = int(budget["spec"]["minAvailable"])
        if pods <= least:
            raise RenderError(_message(budget, serving=serving, pods=pods, least=least))
    return documents, notes


def _message(budget: Document, *, serving: ServingConfig, pods: int, least: int) -> str:
    wanted = max(serving.min_replicas, least + 1)
    # the largest number for which more than `least` pods have a replica
    per_pod = math.ceil(wanted / least) - 1
    spread = f"serving.autoscaling.max_replicas_per_node={per_pod}"
    if serving.engine == "vllm":
        spread = f"use worker pods with room for at most {per_pod} of them"
    return (
        f"the PodDisruptionBudget {_name(budget)} keeps {least} ready worker, but "
        f"serving.autoscaling.min_replicas={serving.min_replicas} can run in {pods} pod, so no "
        f"node could be drained; set serving.autoscaling.min_replicas={wanted} and {spread}, or "
        "remove the budget from the overlay if a drain may interrupt the service"
    )


def _selects(budget: Document, node_type: str) -> bool:
    labels = budget["spec"]["selector"].get("matchLabels", {})
    return bool(labels.get("ray.io/node-type") == node_type)


def _name(document: Document) -> str:
    return str(document["metadata"]["name"])
