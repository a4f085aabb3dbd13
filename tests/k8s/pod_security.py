"""The rules of the Pod Security level `restricted`, as Kubernetes enforces them."""

from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import Pod

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = ("RuntimeDefault", "Localhost")


def refusals(pod: Pod) -> list[str]:
    """Return the reasons why Kubernetes would refuse the pod."""
    return [
        *_of_pod(pod.spec),
        *(fault for container in pod.containers for fault in _of_container(container, pod.spec)),
    ]


def _of_pod(spec: dict[str, Any]) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", []):
        (kind,) = set(volume) - {"name"}
        if kind not in VOLUMES:
            yield f"a volume of kind {kind}"
    context = spec.get("securityContext", {})
    if context.get("sysctls"):
        yield "sysctls"
    if context.get("runAsUser") == 0:
        yield "the pod runs as root"


def _of_container(container: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    own, pod, name = (
        container.get("securityContext", {}),
        spec.get("securityContext", {}),
        container["name"],
    )
    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: may escalate privileges"
    if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield f"{name}: may be root"
    if own.get("runAsUser") == 0:
        yield f"{name}: is root"
    if (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in SECCOMP:
        yield f"{name}: no seccomp profile"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name}: keeps capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name}: adds capabilities"
    if own.get("procMount", "Default") != "Default":
        yield f"{name}: sees all of /proc"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name}: uses a port of the node"
