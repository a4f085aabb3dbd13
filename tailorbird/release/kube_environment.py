"""Render all permanent resources of a task and its environment to a folder, for GitOps."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tailorbird.config.recipe import Recipe
from tailorbird.release.kube_documents import (
    MAX_NAME_LENGTH,
    Document,
    RenderError,
    kube_name,
    read_documents,
    to_yaml,
)
from tailorbird.release.manifests import render_manifest

PLATFORM = "platform"
"""Folder with what the tasks of a namespace share: the overlay itself, and what `render` does not
change."""
TARGETS = {"service": "rayservice", "watch": "watch", "monitoring": "monitoring"}
"""Parts of an overlay that are applied for as long as a task is served, with their targets. Jobs
run once."""
OPTIONAL = ("monitoring",)
"""Parts that an overlay may lack."""
EXAMPLES = re.compile(
    r"\S*\bexample\.(?:com|internal)\S*|\S*sha256:0{64}|\S*:111122223333:\S*|192\.0\.2\.0/24|198\.51\.100\.0/24"
    r"|my-task-canary\S*"
)
"""Values of the shipped overlays and components that must be replaced."""
NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
CLUSTER_WIDE = ("Namespace",)
REFERENCES = {
    "ConfigMap": ("configMapRef", "configMapKeyRef", "configMap"),
    "ServiceAccount": ("serviceAccountName",),
}
SECRET_FIELDS = (
    "secretKeyRef",
    "secretRef",
    "secretName",
    "secret",
    "imagePullSecrets",
    "certificateRefs",
)
"""Fields that name other objects: a name itself, or a mapping (or a list of them) with `name` or
`secretName`."""


@dataclass(frozen=True)
class Written:
    """The files of an environment by their path in the output folder, and notes for the user."""

    files: dict[str, str]
    notes: tuple[str, ...]


def render_environment(recipe: Recipe, *, overlay: Path) -> Written:
    """Render the platform of the overlay, the champion as a RayService, its watch and its
    monitoring.

    The output has a folder for the platform and one for the task, each with a `kustomization.yaml`.
    All tasks of an overlay give the same platform. The same recipe, champion and overlay give the
    same bytes. Raises RenderError if the result would not work in an empty cluster, apart from the
    Secrets that the notes list, and the errors of `render_manifest`.
    """
    platform = read_documents(_build(overlay), template=overlay)
    namespace = _namespace(platform)
    task = kube_name(recipe.name, max_length=MAX_NAME_LENGTH)
    if task == PLATFORM:
        raise RenderError(
            f"the recipe's name {task!r} is that of the common folder; choose another name"
        )
    contents: dict[str, list[Document]] = {f"{PLATFORM}/{PLATFORM}.yaml": platform}
    notes: list[str] = []
    seen = {_key(each): each for each in platform}
    for part, target in TARGETS.items():
        if part in OPTIONAL and not (overlay / part).is_dir():
            continue
        base = _build(overlay / part)
        done = render_manifest(recipe, to=target, base=base)
        notes += done.notes
        given = read_documents(base, template=overlay)
        documents = read_documents(done.text, template=overlay)
        new = [
            each for each in documents if seen.get(_key(each)) != each
        ]  # several parts have the settings
        seen |= {_key(each): each for each in new}
        contents[f"{PLATFORM}/{part}.yaml"] = [each for each in new if each in given]
        contents[f"{task}/{part}.yaml"] = [each for each in new if each not in given]
    require_complete(list(chain.from_iterable(contents.values())), overlay=overlay)
    files = {path: to_yaml(documents) for path, documents in contents.items() if documents}
    for folder in (PLATFORM, task):
        names = [path.rpartition("/")[2] for path in files if path.startswith(f"{folder}/")]
        header: Document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
        }
        files[f"{folder}/kustomization.yaml"] = to_yaml([header | {"resources": names}])
    everything = list(contents.values())
    required = set(_named(everything, SECRET_FIELDS))
    optional = set(_named(everything, SECRET_FIELDS, optional=True)) - required
    notes.append(f"these Secrets must exist in {namespace}: {', '.join(sorted(required))}")
    notes.append(f"these Secrets are read if they exist: {', '.join(sorted(optional))}")
    return Written(files, tuple(notes))


def write_environment(written: Written, folder: Path) -> None:
    """Write the files to the folder; files of other tasks in it do not change."""
    for path, text in written.files.items():
        target = folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RenderError(
                f"{target}: {error.strerror or error}; give a folder that can be written"
            ) from None


def require_complete(documents: Sequence[Document], *, overlay: Path) -> None:
    """Raise RenderError with all mistakes in the documents.

    These are example values, invalid names, documents outside of the namespace, two documents with
    the same name, and references to a ConfigMap or ServiceAccount that is not among the documents.
    """
    faults = [
        f"{value} is an example value"
        for value in sorted(set(EXAMPLES.findall(to_yaml(documents))))
    ]
    namespace = _namespace(documents)
    keys = [_key(document) for document in documents]
    for document, key in zip(documents, keys, strict=True):
        kind, stated, name = key
        if not NAME.fullmatch(name):
            faults.append(f"{kind} {name!r} has an invalid name")
        if keys.count(key) > 1:
            faults.append(f"{kind} {name} is there twice, with different content")
        if kind not in CLUSTER_WIDE and stated != namespace:
            faults.append(
                f"{kind} {name} is in the namespace {stated or 'default'}, not in {namespace}"
            )
        for target, fields in REFERENCES.items():
            missing = [
                each for each in _named(document, fields) if (target, namespace, each) not in keys
            ]
            faults += [
                f"{kind} {name} needs the {target} {each}, which is not there" for each in missing
            ]
    if faults:
        raise RenderError(
            f"{overlay} is not ready to use: {'; '.join(dict.fromkeys(faults))}; correct the "
            "overlay"
        )


def _named(node: object, fields: Sequence[str], *, optional: bool = False) -> Iterator[str]:
    """Yield the names in these fields of a node and its descendants, of required or of optional
    references."""
    if isinstance(node, list):
        for child in node:
            yield from _named(child, fields, optional=optional)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key not in fields:
            yield from _named(value, fields, optional=optional)
            continue
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str):
                reference = {"name": reference}
            if bool(reference.get("optional")) is optional:
                yield reference.get("name") or reference["secretName"]


def _key(document: Document) -> tuple[str, str, str]:
    """Return kind, namespace and name."""
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def _namespace(documents: Sequence[Document]) -> str:
    names = [
        document["metadata"]["name"] for document in documents if document["kind"] == "Namespace"
    ]
    if len(names) != 1:
        raise RenderError(
            f"--overlay has {len(names)} namespaces; give the folder of one environment"
        )
    return str(names[0])


def _build(folder: Path) -> str:
    """Return the output of `kubectl kustomize`."""
    kubectl = shutil.which("kubectl") or shutil.which("kubectl", path=Path(sys.executable).parent)
    if kubectl is None:
        raise RenderError(
            "--overlay needs kubectl, which is not installed; install it, or use --to with --base"
        )
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RenderError(f"`kubectl kustomize {folder}` failed: {done.stderr.strip()}")
    return done.stdout
