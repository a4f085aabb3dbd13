"""Keep a RayService and its clusters in line with what is deployed.

KubeRay deploys `serveConfigV2` again after a restart of the operator or the loss of a cluster, so a
change by Serve's REST API must also be written there. It ignores a change of the bounds of worker
groups (ray-project/kuberay#4568), so such a change must also be written to the running clusters.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from serving.deploy.application import application_name
from serving.deploy.serve_client import declared_applications
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.release.kube_api import ACCOUNT, KubernetesError, read_object, update_object
from tailorbird.release.kube_documents import Document, to_yaml

RAYSERVICE = "TAILORBIRD_RAYSERVICE"
"""Environment variable with the RayService of the task, as `NAMESPACE/NAME`; in a pod, also
`NAME`."""
SERVICES = "rayservices"
CLUSTERS = "rayclusters"
BOUNDS = ("minReplicas", "maxReplicas")


@dataclass(frozen=True)
class RayServiceRef:
    """The name of a RayService."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def rayservice_of_environment() -> RayServiceRef | None:
    """Return the RayService that TAILORBIRD_RAYSERVICE names, or None if it is not set."""
    value = os.environ.get(RAYSERVICE)
    if not value:
        return None
    namespace, _, name = value.rpartition("/")
    if not namespace:
        try:
            namespace = (ACCOUNT / "namespace").read_text().strip()
        except OSError:
            raise KubernetesError(
                f"{RAYSERVICE}={value} has no namespace; set it to NAMESPACE/NAME"
            ) from None
    return RayServiceRef(namespace, name)


def record_deployed(task_uri: str) -> str | None:
    """Write the deployed configuration of the task to `serveConfigV2` of the RayService; return the
    RayService's name.

    Other applications do not change. Do nothing and return None if TAILORBIRD_RAYSERVICE is not
    set, or if the task is not served. Raises KubernetesError, also if the RayService is that of
    another task.
    """
    service = rayservice_of_environment()
    if service is not None:
        deployed = declared_applications().get(application_name(task_uri))
    else:
        deployed = None
    if service is None or deployed is None:
        return None
    application = deployed.to_json()

    def patch_of(document: Document) -> list[Document]:
        text = document["spec"].get("serveConfigV2", "")
        config, applications = _serve_config(document)
        if deployed.name not in applications:
            raise KubernetesError(
                f"{service} does not serve {task_uri}; set {RAYSERVICE} to the RayService of this "
                "task"
            )
        if applications[deployed.name] == application:
            return []
        replaced = config | {
            "applications": list((applications | {deployed.name: application}).values())
        }
        return [
            {"op": "test", "path": "/spec/serveConfigV2", "value": text},
            {"op": "replace", "path": "/spec/serveConfigV2", "value": to_yaml([replaced])},
        ]

    update_object(SERVICES, patch_of, namespace=service.namespace, name=service.name)
    return str(service)


def scale_clusters(recipe: Recipe) -> tuple[str, ...]:
    """Set the bounds of the worker groups of the RayService in its running clusters; return what
    was changed.

    Raise KubernetesError if the RayService was not rendered from this recipe's `serving` section,
    or if a cluster has other groups.
    """
    service = rayservice_of_environment()
    if service is None:
        raise KubernetesError(
            f"{RAYSERVICE} is not set; set it to the NAMESPACE/NAME of the RayService"
        )
    document = read_object(SERVICES, namespace=service.namespace, name=service.name)
    _require_rendered(recipe, document, service=service)
    groups = {
        group["groupName"]: group
        for group in document["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }

    def patch_of(cluster: Document) -> list[Document]:
        current = cluster["spec"]["workerGroupSpecs"]
        if [group["groupName"] for group in current] != list(groups):
            raise KubernetesError(
                f"the cluster {cluster['metadata']['name']} has other worker groups than "
                f"{service}; wait until the operator has replaced it"
            )
        return _bounds_patch(current, groups)[0]

    lines: list[str] = []
    for name in _running_clusters(document):
        before = update_object(CLUSTERS, patch_of, namespace=service.namespace, name=name)
        changes = _bounds_patch(before["spec"]["workerGroupSpecs"], groups)[1]
        lines += [f"{name}: {change}" for change in changes or ("has the bounds already",)]
    return tuple(lines)


def _require_rendered(recipe: Recipe, document: Document, *, service: RayServiceRef) -> None:
    application = _serve_config(document)[1].get(application_name(recipe.task_uri))
    if application is None:
        raise KubernetesError(
            f"{service} does not serve {recipe.task_uri}; check {RAYSERVICE} and the recipe"
        )
    deployed = ServingConfig.model_validate(application.get("args", {}).get("serving", {}))
    for field in ("min_replicas", "max_replicas"):
        wanted = getattr(recipe.serving, field)
        has = getattr(deployed, field)
        if wanted != has:
            raise KubernetesError(
                f"{service} has serving.{field}={has}, but the recipe has {wanted}; first apply "
                "the manifest that `tailorbird render RECIPE --to rayservice` writes"
            )


def _serve_config(document: Document) -> tuple[Document, dict[str, Document]]:
    """Return `serveConfigV2` of a RayService, and its applications by name."""
    config = yaml.safe_load(document["spec"].get("serveConfigV2", "")) or {}
    return config, {each["name"]: each for each in config.get("applications", [])}


def _running_clusters(document: Document) -> Iterator[str]:
    """Yield the names of the active cluster and of the one that will replace it."""
    status = document.get("status", {})
    names = [
        status.get(key, {}).get("rayClusterName")
        for key in ("activeServiceStatus", "pendingServiceStatus")
    ]
    if not any(names):
        name = document["metadata"]["name"]
        raise KubernetesError(
            f"{name} has no cluster yet; its first cluster will have the bounds of the manifest"
        )
    yield from (name for name in names if name)


def _bounds_patch(
    current: list[Document], wanted: dict[str, Document]
) -> tuple[list[Document], list[str]]:
    """Return the JSON patch that sets the bounds of the groups, and a line for each changed group.

    `replicas` is not set, because the autoscaler sets it; the operator and the autoscaler keep it
    between the bounds.
    """
    patch: list[Document] = []
    changes: list[str] = []
    for index, group in enumerate(current):
        name = group["groupName"]
        path = f"/spec/workerGroupSpecs/{index}"
        before, after = (
            [bounds.get(field) for field in BOUNDS] for bounds in (group, wanted[name])
        )
        if before == after:
            continue
        patch.append({"op": "test", "path": f"{path}/groupName", "value": name})
        patch += [
            {"op": "add", "path": f"{path}/{field}", "value": value}
            for field, value in zip(BOUNDS, after, strict=True)
        ]
        changes.append(
            f"{name} has {after[0]} to {after[1]} workers instead of {before[0]} to {before[1]}"
        )
    return patch, changes
