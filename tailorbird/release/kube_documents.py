"""Read, size, label and write Kubernetes manifests as YAML documents."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tailorbird.config.base import digest

Document = dict[str, Any]  # a parsed YAML document
# libyaml's parser, which PyYAML's wheels contain, takes a tenth of the time.
LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NUM_DIGITS = 8  # digits of a digest in a name
MAX_NAME_LENGTH = 40
"""Of a RayService or RayJob. The operator accepts 47, but cuts derived names (`NAME-serve-svc`,
secrets) to 50."""


class RenderError(ValueError):
    """Raised if a recipe cannot be rendered into a manifest."""


def read_documents(base: str | None, *, template: Path) -> list[Document]:
    """Return the documents of `base`, or of the template file if `base` is None."""
    if base is None:
        try:
            base = template.read_text(encoding="utf-8")
        except OSError:
            raise RenderError(
                f"{template} does not exist; give --base, as in `kubectl kustomize "
                "k8s/overlays/prod/job | tailorbird render RECIPE --to rayjob --base -`"
            ) from None
    try:
        # The JSON round trip turns YAML aliases into separate copies.
        return [
            json.loads(json.dumps(document)) for document in yaml.load_all(base, LOADER) if document
        ]
    except yaml.YAMLError as error:
        raise RenderError(f"--base is not valid YAML: {error}") from None


def document_of_kind(documents: Sequence[Document], *, kind: str) -> Document:
    """Return the only document of this kind; raise RenderError if there is not exactly one."""
    matching = [
        document
        for document in documents
        if isinstance(document, dict) and document.get("kind") == kind
    ]
    if len(matching) != 1:
        raise RenderError(
            f"--base has {len(matching)} documents of kind {kind}; give the part of the overlay "
            "that has exactly one"
        )
    return matching[0]


def size_workers(
    groups: list[Document],
    *,
    cpus: int,
    gpus: float,
    min_processes: int,
    max_processes: int,
    most_per_pod: int | None = None,
) -> int:
    """Size the first worker group whose pods fit a process with these CPUs and GPUs; set the other
    groups to no pods.

    The group gets pods for `min_processes` to `max_processes`. A larger minimum in the manifest is
    kept. A pod gets at most `most_per_pod` processes. Return the number of processes per pod.
    """
    for sized in groups:
        limits = sized["template"]["spec"]["containers"][0]["resources"]["limits"]
        pod_cpus = parse_quantity(limits["cpu"])
        pod_gpus = parse_quantity(limits.get("nvidia.com/gpu", "0"))
        per_pod = min(
            math.floor(pod_cpus / cpus),
            math.floor(pod_gpus / gpus) if gpus else max_processes,
            most_per_pod or max_processes,
        )
        if per_pod >= 1 and bool(pod_gpus) == bool(gpus):
            break
    else:
        names = ", ".join(str(group["groupName"]) for group in groups)
        raise RenderError(
            f"no worker group has pods with {cpus} CPUs and {gpus:g} GPUs, which one process of "
            f"this recipe needs (groups: {names}); lower the recipe's values, or add a group as in "
            "k8s/components/spot-gpu"
        )
    for group in groups:
        if group is not sized:
            group["replicas"] = group["minReplicas"] = 0
    sized["minReplicas"] = max(sized["minReplicas"], math.ceil(min_processes / per_pod))
    sized["maxReplicas"] = max(sized["minReplicas"], math.ceil(max_processes / per_pod))
    sized["replicas"] = sized["minReplicas"]
    return per_pod


def add_secrets(pod: Document, *, variables: Sequence[str], secret: str) -> None:
    """Set environment variables of the pod's containers from the keys of the same names in a
    Secret.

    A pod without the Secret or the key does not start, and Kubernetes reports what is missing.
    """
    if not variables:
        return
    for container in pod["containers"]:
        environment = container.setdefault("env", [])
        environment += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}
            for name in sorted(variables)
        ]


def set_label(documents: Sequence[Document], *, label: str, value: str) -> None:
    """Set the label wherever it occurs: in metadata, in pod templates, and in selectors."""
    for document in documents:
        _relabel(document, label=label, value=value)


def fill_in(node: Any, *, placeholder: str, value: str) -> Any:
    """Return the node with the value in place of the placeholder in every string."""
    if isinstance(node, dict):
        return {
            key: fill_in(child, placeholder=placeholder, value=value) for key, child in node.items()
        }
    if isinstance(node, list):
        return [fill_in(child, placeholder=placeholder, value=value) for child in node]
    if isinstance(node, str):
        return node.replace(placeholder, value)
    return node


def rename_documents(documents: Sequence[Document], *, owner: Document) -> None:
    """Append the owner's name to the names of the other documents, change references to them, and
    add its labels.

    Two tasks in one namespace then share no document that a prune or a deletion of one task would
    remove, except a Gateway, to which the routes of several services can be attached.
    """
    suffix = f"-{owner['metadata']['name']}"
    renamed = {}
    for document in documents:
        if document is not owner and document["kind"] != "Gateway":
            metadata = document["metadata"]
            name = metadata["name"]
            renamed[document["kind"], name] = metadata["name"] = f"{name}{suffix}"
            metadata["labels"] = owner["metadata"].get("labels", {}) | metadata.get("labels", {})
    for document in documents:
        _rename_references(document, renamed=renamed)


def _rename_references(node: Any, *, renamed: dict[tuple[str, str], str]) -> None:
    """Change references to renamed ConfigMaps and Services in a node and its descendants."""
    if isinstance(node, dict):
        settings = node.get("configMapRef")
        if settings is not None:
            settings["name"] = renamed.get(("ConfigMap", settings["name"]), settings["name"])
        if "serviceName" in node:  # of a StatefulSet
            node["serviceName"] = renamed.get(("Service", node["serviceName"]), node["serviceName"])
        if "redisAddress" in node:
            host, _, port = node["redisAddress"].partition(":")
            node["redisAddress"] = f"{renamed.get(('Service', host), host)}:{port}"
    for child in _children(node):
        _rename_references(child, renamed=renamed)


def _relabel(node: Any, *, label: str, value: str) -> None:
    """Set the label in a node and its descendants."""
    if isinstance(node, dict) and label in node:
        node[label] = value
    for child in _children(node):
        _relabel(child, label=label, value=value)


def _children(node: Any) -> Iterable[Any]:
    """Return the values of a mapping or the items of a list; a scalar has none."""
    match node:
        case dict():
            return node.values()
        case list():
            return node
        case _:
            return ()


def parse_quantity(quantity: str | float) -> float:
    """Return a Kubernetes quantity of CPUs or GPUs (`4`, `0.5` or `500m`) as a number."""
    text = str(quantity)
    if text.endswith("m"):
        return float(text.removesuffix("m")) / 1000
    return float(text)


def kube_name(name: str, *, max_length: int) -> str:
    """Return a valid Kubernetes name: it begins with a letter, and a long name is cut and ends with
    a hash."""
    valid = name if name[0].isalpha() else f"t-{name}"
    if len(valid) > max_length:
        valid = f"{valid[: max_length - NUM_DIGITS - 1]}-{digest({'name': name})[:NUM_DIGITS]}"
    return re.sub(r"-+$", "", valid)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes multi-line strings as blocks and no aliases."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def to_yaml(documents: Sequence[Document]) -> str:
    """Return the documents as YAML."""
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16
    )
