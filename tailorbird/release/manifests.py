"""Render a recipe as KubeRay manifests or a Ray Serve configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serving.deploy.application import application_of
from serving.deploy.rollout import require_unchanged
from serving.deploy.serve_client import listen_host, serve_body, serve_url
from serving.http.schemas import LOCAL
from tailorbird import resource_folder
from tailorbird.config.base import digest
from tailorbird.config.loader import recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.registry.versions import ModelVersion, read_parts
from tailorbird.release import kube_documents
from tailorbird.release.kube_documents import (
    MAX_NAME_LENGTH,
    NUM_DIGITS,
    Document,
    RenderError,
    document_of_kind,
    fill_in,
    kube_name,
    to_yaml,
)
from tailorbird.release.kube_drain import require_drainable
from tailorbird.release.rayservice import RAYSERVICE

K8S = resource_folder("k8s")
RECIPE_FILE = "/etc/tailorbird/recipe.yaml"
SERVE_PORT = 8000
# in a route or an ingress: the Kubernetes Service of a RayService's proxies
SERVE_SERVICE = "SERVICE-serve-svc"
ENDPOINT_KEYS = "endpoint-keys"
"""Kubernetes Secret with the API keys of endpoints, by the names of their environment variables."""
SERVICE, STORE, RUN = (f"tailorbird.io/{name}" for name in ("service", "store", "run"))
"""Pod labels by which network policies and disruption budgets select one service, its store or a
run."""


@dataclass(frozen=True)
class Rendered:
    """A rendered file, with notes for the user."""

    text: str
    notes: tuple[str, ...] = ()


def render_manifest(
    recipe: Recipe, *, to: str, base: str | None = None, name: str | None = None
) -> Rendered:
    """Render the recipe for the target `to`, one of `TARGETS`; `name` is that of a RayService, by
    default the recipe's.

    For a manifest, fill in `base` (YAML, as `kubectl kustomize` prints it) or the template under
    `k8s/`; other documents are kept. Raises RenderError if the recipe does not fit. For a champion,
    also raises PromotionRefused, RegistryError and DeployError, like `tailorbird serve`.
    """
    if to not in TARGETS:
        raise RenderError(f"unknown --to {to!r}; choose one of {', '.join(TARGETS)}")
    target = TARGETS[to]
    if target.template is None:
        if base is not None:
            raise RenderError(
                f"--base does not apply to --to {to}, which is not a manifest; omit it"
            )
        return target.write(recipe, [])
    if name is not None:
        if to != "rayservice" or name != kube_name(name, max_length=MAX_NAME_LENGTH):
            raise RenderError(
                f"--name {name!r} does not apply: it names a RayService (--to rayservice), starts "
                f"with a letter and has at most {MAX_NAME_LENGTH} characters"
            )
        documents = kube_documents.read_documents(base, template=K8S / target.template)
        return _rayservice(recipe, documents, name=name)
    return target.write(recipe, kube_documents.read_documents(base, template=K8S / target.template))


def _rayjob(recipe: Recipe, documents: list[Document]) -> Rendered:
    """Render a run on its own cluster, with room for the recipe's workers and concurrent trials."""
    job = document_of_kind(documents, kind="RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    name = _run_name(recipe, image=head["containers"][0]["image"])
    config = recipe.training
    kube_documents.size_workers(
        cluster["workerGroupSpecs"],
        cpus=config.cpus_per_worker,
        gpus=config.gpus_per_worker,
        min_processes=config.min_workers,
        max_processes=config.max_workers * recipe.tuning.trials_at_once(room=1),
    )
    keys = {endpoint.api_key or "" for endpoint in recipe.evaluation.endpoints.values()}
    variables = tuple(_variable(key) for key in sorted(keys - {""}))
    if variables:  # the run's driver sends the requests
        kube_documents.add_secrets(head, variables=variables, secret=ENDPOINT_KEYS)
    job["metadata"]["name"] = name
    job["spec"]["entrypoint"] = f"python -m tailorbird run {RECIPE_FILE}"
    kube_documents.set_label(documents, label=RUN, value=name)
    kube_documents.rename_documents(documents, owner=job)
    return Rendered(to_yaml([_mount_recipe(recipe, head, owner=job), *documents]))


def _watch(recipe: Recipe, documents: list[Document]) -> Rendered:
    """Render a nightly `tailorbird watch`."""
    name = f"watch-{kube_name(recipe.name, max_length=MAX_NAME_LENGTH - len('watch-'))}"
    job = document_of_kind(documents, kind="CronJob")
    job["metadata"]["name"] = name
    kube_documents.rename_documents(documents, owner=job)
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return Rendered(to_yaml([_mount_recipe(recipe, pod, owner=job), *documents]))


def _preflight(recipe: Recipe, documents: list[Document]) -> Rendered:
    """Render a job that runs `tailorbird preflight` where a training would run."""
    job = document_of_kind(documents, kind="Job")
    job["metadata"]["name"] = f"preflight-{kube_name(recipe.name, max_length=MAX_NAME_LENGTH)}"
    kube_documents.rename_documents(documents, owner=job)
    return Rendered(
        to_yaml([_mount_recipe(recipe, job["spec"]["template"]["spec"], owner=job), *documents])
    )


def _client_job(recipe: Recipe, documents: list[Document], *, verb: str) -> Rendered:
    """Render a job that runs a command in the cluster, where it can reach the service's dashboard
    and routes."""
    job = document_of_kind(documents, kind="Job")
    service = kube_name(recipe.name, max_length=MAX_NAME_LENGTH)
    pod = job["spec"]["template"]["spec"]
    job["metadata"]["name"] = f"{verb}-{service}"
    kube_documents.rename_documents(documents, owner=job)
    pod["containers"][0]["command"] = ["python", "-m", "tailorbird", verb, RECIPE_FILE]
    addresses = {
        "RAY_API_SERVER_ADDRESS": f"http://{service}-head-svc:8265",
        "TAILORBIRD_SERVE_URL": f"http://{service}-serve-svc:{SERVE_PORT}",
        RAYSERVICE: service,
    }
    for variable in pod["containers"][0]["env"]:
        if variable["name"] in addresses:
            variable["value"] = addresses[variable["name"]]
    return Rendered(to_yaml([_mount_recipe(recipe, pod, owner=job), *documents]))


def _rayservice(recipe: Recipe, documents: list[Document], *, name: str | None = None) -> Rendered:
    """Render the champion as `tailorbird serve` deploys it, on a cluster with room for its replicas
    and one more.

    A candidate with other code needs that replica for its parity check.
    """
    service = document_of_kind(documents, kind="RayService")
    name = name or kube_name(recipe.name, max_length=MAX_NAME_LENGTH)
    rendered_service = _serve_config(recipe, url=f"http://{name}-serve-svc:{SERVE_PORT}")
    serving = recipe.serving
    cluster = service["spec"]["rayClusterConfig"]
    per_pod = kube_documents.size_workers(
        cluster["workerGroupSpecs"],
        cpus=serving.cpus_per_replica,
        gpus=0 if rendered_service.without_gpu else serving.gpus_per_replica,
        min_processes=serving.min_replicas,
        max_processes=serving.max_replicas + 1,
        most_per_pod=serving.max_replicas_per_node,
    )
    service["metadata"]["name"] = name
    service["spec"]["serveConfigV2"] = to_yaml([rendered_service.config])
    for group in cluster["workerGroupSpecs"]:
        kube_documents.add_secrets(
            group["template"]["spec"], variables=rendered_service.keys, secret=ENDPOINT_KEYS
        )
    for label in (SERVICE, STORE):
        kube_documents.set_label(documents, label=label, value=name)
    kube_documents.rename_documents(documents, owner=service)
    documents, drain_notes = require_drainable(documents, serving=serving, per_pod=per_pod)
    documents = fill_in(documents, placeholder=SERVE_SERVICE, value=f"{name}-serve-svc")
    return Rendered(to_yaml(documents), rendered_service.notes + drain_notes)


def _monitoring(recipe: Recipe, documents: list[Document]) -> Rendered:
    """Render the probe of the recipe's service; keep the monitors and rules of the namespace.

    Omit the probe if the service scales to zero, because a probe keeps a replica up.
    """
    probe = document_of_kind(documents, kind="Probe")
    metadata = probe["metadata"]
    service = kube_name(recipe.name, max_length=MAX_NAME_LENGTH)
    if "namespace" not in metadata:
        raise RenderError(
            "the blackbox exporter runs in another namespace, but --base has no namespace; give "
            "an overlay as --base"
        )
    url = f"http://{service}-serve-svc.{metadata['namespace']}:{SERVE_PORT}/readyz"
    probe["spec"]["targets"]["staticConfig"]["static"] = [url]
    metadata["name"] += f"-{service}"
    kube_documents.set_label([probe], label=SERVICE, value=service)
    if recipe.serving.min_replicas > 0:
        return Rendered(to_yaml(documents))
    note = (
        f"{metadata['name']} is omitted because it would keep a replica up; delete it from the "
        "cluster if it exists"
    )
    return Rendered(to_yaml([document for document in documents if document is not probe]), (note,))


def _serve(recipe: Recipe, _documents: list[Document]) -> Rendered:
    service = _serve_config(recipe, url=serve_url())
    return Rendered(to_yaml([service.config]), service.notes)


@dataclass(frozen=True)
class _Target:
    write: Callable[[Recipe, list[Document]], Rendered]
    template: str | None = None  # under `k8s/`; None if the target is not a manifest


TARGETS = {
    "preflight": _Target(_preflight, "jobs/preflight/preflight.yaml"),
    "rayjob": _Target(_rayjob, "jobs/run/rayjob.yaml"),
    "rayservice": _Target(_rayservice, "base/service/rayservice.yaml"),
    "promote": _Target(partial(_client_job, verb="promote"), "jobs/promote/promote.yaml"),
    "prove": _Target(
        partial(_client_job, verb="serve"), "jobs/promote/promote.yaml"
    ),  # serves the champion after its parity check
    "watch": _Target(_watch, "jobs/watch/watch.yaml"),
    "monitoring": _Target(_monitoring, "components/monitoring/probe.yaml"),
    "serve": _Target(_serve),
}


@dataclass(frozen=True)
class ServedChampion:
    """The Serve configuration of a champion, and what its cluster must have."""

    config: Document
    notes: tuple[str, ...] = ()
    without_gpu: bool = False  # True if the replicas use no GPU, whatever the recipe sets
    keys: tuple[str, ...] = ()  # environment variables with the API keys of endpoints


def _serve_config(recipe: Recipe, *, url: str) -> ServedChampion:
    """Return the service of the champion at `url`."""
    from tailorbird.registry.champion import champion_version, read_champion
    from tailorbird.release.serving import additional_versions  # slow to import, and only used here

    stored = read_champion(recipe.task_uri)
    if stored is None:
        raise RenderError(
            f"{recipe.task_uri} has no champion; run `tailorbird promote RECIPE` first"
        )
    champion = stored[0]
    config = recipe.serving
    if (
        config.api_keys is None and not config.guarded and listen_host(url) not in LOCAL
    ):  # `serve` refuses this too
        raise RenderError(
            "serving.api_keys is not set, but other machines can reach this Serve; create a key "
            "with `tailorbird key NAME`, or set serving.guarded=true if a gateway authenticates "
            "clients"
        )
    version = champion_version(champion)
    require_unchanged(version.code)  # the manifest deploys the code of the version
    additional = additional_versions(
        config, task_uri=recipe.task_uri, champion=champion, version=version
    )
    app = application_of(
        config,
        task_uri=recipe.task_uri,
        version=version,
        additional=additional,
        verdict=champion.verdict,
    )
    command = (
        "when the service is up, run `tailorbird serve RECIPE` or the job that `--to prove` renders"
    )
    note = f"{champion.version} has not passed the parity gate yet: {command}"
    served = [each for each in (version, additional.challenger) if each is not None]
    return ServedChampion(
        serve_body([app], url=url),
        (note,) if champion.needs_parity else (),
        without_gpu=app.args.get("without_gpu", False),
        keys=endpoint_keys(served),
    )


def endpoint_keys(served: Sequence[ModelVersion]) -> tuple[str, ...]:
    """Return the environment variables with the API keys of the endpoints of versions and of the
    parts of hybrids."""
    parts: list[ModelVersion] = []
    for version in served:
        parts += read_parts(version.hybrid) if version.hybrid else [version]
    references = {part.endpoint.api_key for part in parts if part.endpoint is not None}
    return tuple(sorted(_variable(reference) for reference in references if reference is not None))


def _variable(reference: str) -> str:
    """Return the environment variable in a reference `env://NAME`."""
    return reference.removeprefix("env://")


def _mount_recipe(recipe: Recipe, pod: Document, *, owner: Document) -> Document:
    """Mount the recipe in the pod; return its ConfigMap."""
    metadata = owner["metadata"]
    name = f"recipe-{metadata['name']}-{digest(recipe)[:NUM_DIGITS]}"
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "recipe")
    volume["configMap"]["name"] = name
    data = {Path(RECIPE_FILE).name: recipe_text(recipe)}
    metadata = {"name": name} | {
        key: metadata[key] for key in ("namespace", "labels") if key in metadata
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": data,
    }


def _run_name(recipe: Recipe, *, image: str) -> str:
    """Return the name of a run; the same recipe and image give the same name, so the run does not
    start twice."""
    suffix = digest({"recipe": recipe.model_dump(mode="json"), "image": image})[:NUM_DIGITS]
    return f"{kube_name(recipe.name, max_length=MAX_NAME_LENGTH - NUM_DIGITS - 1)}-{suffix}"
