"""Manifests built by kustomize, and the pods that KubeRay's operator would create from them."""

import copy
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
KUBECTL = Path(sys.executable).parent / "kubectl"

Document = dict[str, Any]

ENVIRONMENTS = {
    "dev": ("dev", "dev/preflight", "dev/job"),
    "staging": (
        "staging",
        "staging/service",
        "staging/preflight",
        "staging/job",
        "staging/promote",
        "staging/watch",
        "staging/monitoring",
    ),
    "prod": (
        "prod",
        "prod/service",
        "prod/preflight",
        "prod/job",
        "prod/promote",
        "prod/watch",
        "prod/monitoring",
    ),
    "onprem": (
        "onprem",
        "onprem/service",
        "onprem/preflight",
        "onprem/job",
        "onprem/promote",
        "onprem/watch",
    ),
}
"""The parts of each overlay, which are applied separately."""
PARTS = tuple(part for parts in ENVIRONMENTS.values() for part in parts)
CLUSTER_SPEC = {
    "RayCluster": (),
    "RayService": ("rayClusterConfig",),
    "RayJob": ("rayClusterSpec",),
}
RAY_CONTAINER = 0


@cache
def kustomize(folder: str) -> str:
    """Return a folder, relative to `k8s` or absolute, as printed by `kubectl kustomize`."""
    command = [str(KUBECTL), "kustomize", folder]
    done = subprocess.run(command, cwd=K8S, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return done.stdout


def build_part(folder: Path, *, resource: str, components: str) -> str:
    """Return a part that no overlay has, built from a resource and components in a copy of `k8s`
    in `folder`, which is made unless it is there."""
    if not (folder / "k8s").exists():
        shutil.copytree(K8S, folder / "k8s")
    part = folder / "k8s" / "overlays" / "added"
    part.mkdir()
    (part / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: "
        f"tailorbird-prod\nresources: [{resource}]\ncomponents: {components}\n"
    )
    return kustomize(str(part))


@cache
def _parsed(folder: str) -> tuple[Document, ...]:
    return tuple(yaml.load_all(kustomize(folder), Loader=yaml.CSafeLoader))


def text_of(part: str) -> str:
    """Return a part of an overlay as printed by `kubectl kustomize`."""
    return kustomize(f"overlays/{part}")


def build(part: str) -> list[Document]:
    """Return a copy of the documents of a part of an overlay."""
    return copy.deepcopy(list(_parsed(f"overlays/{part}")))


def environment(name: str) -> list[Document]:
    """Return the documents of all parts of an overlay."""
    return [document for part in ENVIRONMENTS[name] for document in build(part)]


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def cluster_of(document: Document) -> Document:
    """Return the specification of the cluster in a Ray resource."""
    spec: Document = document["spec"]
    for key in CLUSTER_SPEC[document["kind"]]:
        spec = spec[key]
    return spec


@dataclass(frozen=True)
class Pod:
    """A pod that the manifests create."""

    name: str
    namespace: str
    labels: dict[str, str]
    spec: Document
    most: int = 1
    """Maximum number of such pods."""
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods_of(documents: list[Document]) -> list[Pod]:
    """Return all pods that the documents create, with the additions of the operator."""
    pods: list[Pod] = []
    for document in documents:
        namespace = document["metadata"].get("namespace", "")
        name = document["metadata"]["name"]
        if document["kind"] in CLUSTER_SPEC:
            pods += _ray_pods(
                cluster_of(document), name=name, namespace=namespace, kind=document["kind"]
            )
        elif document["kind"] == "CronJob":
            template = document["spec"]["jobTemplate"]["spec"]["template"]
            pods.append(_pod(template, name=name, namespace=namespace))
        elif "template" in document.get("spec", {}):
            template = document["spec"]["template"]
            most = document["spec"].get("replicas", 1)
            pods.append(_pod(template, name=name, namespace=namespace, most=most))
    return pods


def _pod(template: Document, *, name: str, namespace: str, most: int = 1) -> Pod:
    labels = template["metadata"]["labels"]
    return Pod(name, namespace, labels, template["spec"], most, _annotations(template))


def _annotations(template: Document) -> dict[str, str]:
    annotations: dict[str, str] = template.get("metadata", {}).get("annotations", {})
    return annotations


def _ray_pods(cluster: Document, *, name: str, namespace: str, kind: str) -> list[Pod]:
    head = cluster["headGroupSpec"]["template"]
    spec = copy.deepcopy(head["spec"])
    if cluster.get("enableInTreeAutoscaling"):
        image = spec["containers"][RAY_CONTAINER]["image"]
        options = cluster.get("autoscalerOptions", {})
        copied = {
            key: options[key] for key in ("resources", "securityContext", "image") if key in options
        }
        spec["containers"].append({"name": "autoscaler", "image": image, **copied})
    labels = _labels(head, cluster=name, node_type="head", group="headgroup")
    if kind == "RayService":
        labels["ray.io/serve"] = "false"
    pods = [Pod(f"{name}-head", namespace, labels, spec, annotations=_annotations(head))]
    for group in cluster["workerGroupSpecs"]:
        template = group["template"]
        spec = copy.deepcopy(template["spec"])
        ray = spec["containers"][RAY_CONTAINER]
        waits = {
            key: ray[key]
            for key in ("image", "securityContext", "envFrom", "volumeMounts")
            if key in ray
        }
        small = {"cpu": "200m", "memory": "256Mi"}
        waits |= {"name": "wait-gcs-ready", "resources": {"requests": small, "limits": small}}
        spec["initContainers"] = [*spec.get("initContainers", []), waits]
        labels = _labels(template, cluster=name, node_type="worker", group=group["groupName"])
        if kind == "RayService":
            labels["ray.io/serve"] = "true"
        most = group["maxReplicas"]
        pods.append(
            Pod(
                f"{name}-{group['groupName']}",
                namespace,
                labels,
                spec,
                most,
                _annotations(template),
            )
        )
    return pods


def _labels(template: Document, *, cluster: str, node_type: str, group: str) -> dict[str, str]:
    """Return the labels of a Ray pod: ours override the operator's, except for three."""
    ours: dict[str, str] = template.get("metadata", {}).get("labels", {})
    own = {"ray.io/cluster": cluster, "ray.io/node-type": node_type, "ray.io/group": group}
    more = {"ray.io/is-ray-node": "yes", "app.kubernetes.io/name": "kuberay"}
    return more | {"app.kubernetes.io/created-by": "kuberay-operator"} | ours | own


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """True if a Kubernetes label selector matches the labels; an empty selector matches all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        key, values = rule["key"], rule.get("values", [])
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[rule["operator"]]
        if not holds:
            return False
    return True


def put(document: Document, path: str, value: Any) -> None:
    """Set the value at a path like `spec.workerGroupSpecs.0.maxReplicas`; None deletes it, `~` is a
    dot in a name."""
    *way, last = (key.replace("~", ".") for key in path.split("."))
    node: Any = document
    for key in way:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    if isinstance(node, list):
        node[int(last) : int(last) + 1] = [] if value is None else [value]
    elif value is None:
        del node[last]
    else:
        node[last] = value
