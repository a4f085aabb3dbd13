"""Kubernetes manifests as YAML documents: read, label, size and write them."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tailorbird.config.base import digest

Document = dict[str, Any]  # a YAML document as parsed
NUM_DIGITS = 8  # of a digest in a name


class RenderError(ValueError):
    """A recipe that the manifest cannot take; the message says why and what to do."""


def read_documents(base: str | None, *, template: Path) -> list[Document]:
    """Return the documents of `base`; of the template file if it is None."""
    if base is None:
        try:
            base = template.read_text(encoding="utf-8")
        except OSError:
            raise RenderError(
                f"{template} is not there: give --base, as in `kubectl kustomize k8s/overlays/prod/job | tailorbird "
                "render RECIPE --to rayjob --base -`"
            ) from None
    try:
        # Through JSON, so that anchored values become separate ones.
        return [json.loads(json.dumps(document)) for document in yaml.safe_load_all(base) if document]
    except yaml.YAMLError as error:
        raise RenderError(f"--base is not YAML: {error}") from None


def document_of_kind(documents: Sequence[Document], *, kind: str) -> Document:
    """Return the only document of a kind; raise RenderError if there is none or more than one."""
    matching = [document for document in documents if isinstance(document, dict) and document.get("kind") == kind]
    if len(matching) != 1:
        raise RenderError(f"--base holds {len(matching)} documents of kind {kind}; give the overlay's part with one")
    return matching[0]


def size_workers(groups: list[Document], *, cpus: int, gpus: int, min_processes: int, max_processes: int) -> None:
    """Set the replicas of the first worker group whose pods can hold such processes; other groups start without pods.

    The group gets pods for `min_processes` to `max_processes`, or keeps the overlay's larger minimum.
    """
    for sized in groups:
        limits = sized["template"]["spec"]["containers"][0]["resources"]["limits"]
        pod_cpus, pod_gpus = parse_quantity(limits["cpu"]), parse_quantity(limits.get("nvidia.com/gpu", "0"))
        per_pod = min(math.floor(pod_cpus / cpus), math.floor(pod_gpus / gpus) if gpus else max_processes)
        if per_pod >= 1 and bool(pod_gpus) == bool(gpus):
            break
    else:
        names = ", ".join(str(group["groupName"]) for group in groups)
        raise RenderError(
            f"no group of workers has pods with {cpus} cores and {gpus} GPUs, which one process of this recipe takes "
            f"(groups: {names}); ask for less, or add a group, as k8s/components/spot-gpu does"
        )
    for group in groups:
        if group is not sized:
            group["replicas"] = group["minReplicas"] = 0
    sized["minReplicas"] = max(sized["minReplicas"], math.ceil(min_processes / per_pod))
    sized["maxReplicas"] = max(sized["minReplicas"], math.ceil(max_processes / per_pod))
    sized["replicas"] = sized["minReplicas"]


def set_label(documents: Sequence[Document], *, label: str, value: str, owner: Document) -> None:
    """Set the label wherever it occurs; append the value to the names of labelled documents other than the owner."""
    for document in documents:
        if _relabel(document, label=label, value=value) and document is not owner:
            document["metadata"]["name"] += f"-{value}"


def _relabel(node: Any, *, label: str, value: str) -> bool:
    """Set the label in a node and all nodes below; return True if it occurs."""
    children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    labelled = sum(_relabel(child, label=label, value=value) for child in children) > 0  # visits all of them
    if isinstance(node, dict) and label in node:
        node[label], labelled = value, True
    return labelled


def parse_quantity(quantity: str | float) -> float:
    """Parse a Kubernetes quantity of CPUs or GPUs: `4`, `0.5` or `500m`."""
    text = str(quantity)
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def kube_name(name: str, *, max_length: int) -> str:
    """Return a name valid in Kubernetes: it begins with a letter; if it is too long, it is cut and ends with a hash."""
    valid = name if name[0].isalpha() else f"t-{name}"
    if len(valid) > max_length:
        valid = f"{valid[: max_length - NUM_DIGITS - 1]}-{digest({'name': name})[:NUM_DIGITS]}"
    return re.sub(r"-+$", "", valid)


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings as blocks, and no aliases."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def to_yaml(documents: Sequence[Document]) -> str:
    """Write documents as YAML."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16)
