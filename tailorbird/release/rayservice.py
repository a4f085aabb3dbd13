"""Keep a RayService in line with what is deployed.

KubeRay deploys `serveConfigV2` again after a restart of the operator or the loss of a cluster, so a
change by Serve's REST API must also be written there.
"""

import os
from dataclasses import dataclass

import yaml

from serving.deploy.application import application_name
from serving.deploy.serve_client import declared_applications
from tailorbird.release.kube_api import ACCOUNT, KubernetesError, update_rayservice
from tailorbird.release.kube_documents import Document, to_yaml

RAYSERVICE = "TAILORBIRD_RAYSERVICE"
"""Environment variable with the RayService of the task, as `NAMESPACE/NAME`; in a pod, also
`NAME`."""


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
    if service is None:
        return None
    deployed = declared_applications().get(application_name(task_uri))
    if deployed is None:
        return None
    application = deployed.to_json()

    def patch_of(document: Document) -> list[Document]:
        text = document["spec"].get("serveConfigV2", "")
        config = yaml.safe_load(text) or {}
        applications = {each["name"]: each for each in config.get("applications", [])}
        if deployed.name not in applications:
            raise KubernetesError(
                f"{service} does not serve {task_uri}; set {RAYSERVICE} to the RayService of this "
                "task"
            )
        if applications[deployed.name] == application:
            return []
        applications[deployed.name] = application
        config["applications"] = list(applications.values())
        return [
            {"op": "test", "path": "/spec/serveConfigV2", "value": text},
            {"op": "replace", "path": "/spec/serveConfigV2", "value": to_yaml([config])},
        ]

    update_rayservice(patch_of, namespace=service.namespace, name=service.name)
    return str(service)
