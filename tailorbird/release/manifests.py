"""One recipe to the file of each door: KubeRay's manifests, a configuration of Serve, a job for Ray's REST API."""

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from serving.deploy.application import application_of
from serving.deploy.rollout import require_unchanged
from serving.deploy.serve_client import listen_host, serve_body, serve_url
from serving.http.schemas import LOCAL
from tailorbird import resource_folder
from tailorbird.config.base import digest
from tailorbird.config.loader import recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.config.training import TrainingConfig

if TYPE_CHECKING:
    from tailorbird.registry.champion import Champion

K8S = resource_folder("k8s")
RECIPE_FILE = "/etc/tailorbird/recipe.yaml"
SERVE_PORT = 8000
MOST_CHARACTERS = 47
"""Of a RayService's or RayJob's name: the operator makes names of services from it."""
NUM_DIGITS = 8
"""Of the digest in the name of what is run once."""
SERVICE, RUN = "tailorbird.io/service", "tailorbird.io/run"
"""Labels that name whose a pod is, so that policies and budgets tell services and trainings of one namespace apart."""

Document = dict[str, Any]


class RenderError(ValueError):
    """A recipe that this door cannot take; the message says why and what to do."""


@dataclass(frozen=True)
class Rendered:
    """A door's file, and what whoever uses it should know."""

    text: str
    notes: tuple[str, ...] = ()


def render_manifest(recipe: Recipe, *, to: str, base: str | None = None) -> Rendered:
    """The file of the door `to`, one of `DOORS`.

    Of a manifest, `base` is the YAML that it is written into, as `kubectl kustomize` gives it; without it, the template
    under `k8s/`. What else stands there stays. Raises RenderError where the recipe does not fit, or, as `serve` does,
    PromotionRefused, RegistryError or DeployError where there is no version to name, or its code was changed.
    """
    if to not in DOORS:
        raise RenderError(f"--to {to!r} is no door; it is one of {', '.join(DOORS)}")
    door = DOORS[to]
    if door.template is None:
        if base is not None:
            raise RenderError(f"--to {to} is no manifest, so it has no --base; leave that out")
        return door.write(recipe, [])
    return door.write(recipe, _documents(base, template=K8S / door.template))


def _rayjob(recipe: Recipe, documents: list[Document]) -> Rendered:
    """A training on a cluster of its own, which has room for the recipe's workers at once, and may grow by the nodes of
    as many trials at a time as it asks for."""
    job = _only(documents, kind="RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    name = _once(recipe, image=head["containers"][0]["image"])
    config: TrainingConfig = recipe.training
    _size(
        cluster["workerGroupSpecs"],
        cpus=config.cpus_per_worker,
        gpus=config.gpus_per_worker,
        fewest=config.min_workers,
        most=config.max_workers * recipe.tuning.trials_at_once(room=1),
    )
    job["metadata"]["name"] = name
    job["spec"]["entrypoint"] = f"python -m tailorbird run {RECIPE_FILE}"
    _claim(documents, label=RUN, name=name, owner=job)
    return Rendered(_text([_mounted(recipe, head, owner=job), *documents]))


def _promote(recipe: Recipe, documents: list[Document]) -> Rendered:
    """A promotion from inside of the cluster, where the service's dashboard and routes can be reached."""
    return _client(recipe, documents, verb="promote")


def _prove(recipe: Recipe, documents: list[Document]) -> Rendered:
    """Asks test rows of what a RayService has started, and notes with the champion how it answered."""
    return _client(recipe, documents, verb="serve")


def _watch(recipe: Recipe, documents: list[Document]) -> Rendered:
    """A watch over what is served, by night, in a pod of its own."""
    job = _only(documents, kind="CronJob")
    job["metadata"]["name"] = f"watch-{_label(recipe.name, most=MOST_CHARACTERS - len('watch-'))}"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return Rendered(_text([_mounted(recipe, pod, owner=job), *documents]))


def _client(recipe: Recipe, documents: list[Document], *, verb: str) -> Rendered:
    job = _only(documents, kind="Job")
    service = _label(recipe.name, most=MOST_CHARACTERS)
    pod = job["spec"]["template"]["spec"]
    job["metadata"]["name"] = f"{verb}-{service}"
    pod["containers"][0]["command"] = ["python", "-m", "tailorbird", verb, RECIPE_FILE]
    addresses = {
        "RAY_API_SERVER_ADDRESS": f"http://{service}-head-svc:8265",
        "TAILORBIRD_SERVE_URL": f"http://{service}-serve-svc:{SERVE_PORT}",
    }
    for variable in pod["containers"][0]["env"]:
        if variable["name"] in addresses:
            variable["value"] = addresses[variable["name"]]
    return Rendered(_text([_mounted(recipe, pod, owner=job), *documents]))


def _rayservice(recipe: Recipe, documents: list[Document]) -> Rendered:
    """The champion, as `tailorbird serve` would deploy it, on a cluster that has room for its replicas and one more: a
    candidate that brings other code is asked in a replica of its own."""
    service = _only(documents, kind="RayService")
    name = _label(recipe.name, most=MOST_CHARACTERS)
    config, notes = _serve_config(recipe, url=f"http://{name}-serve-svc:{SERVE_PORT}")
    section = recipe.serving
    _size(
        service["spec"]["rayClusterConfig"]["workerGroupSpecs"],
        cpus=section.cpus_per_replica,
        gpus=section.gpus_per_replica,
        fewest=section.min_replicas,
        most=section.max_replicas + 1,
    )
    service["metadata"]["name"] = name
    service["spec"]["serveConfigV2"] = _text([config])
    _claim(documents, label=SERVICE, name=name, owner=service)
    kept, left_out = _probed(documents, service, may_sleep=section.min_replicas == 0)
    return Rendered(_text(kept), notes + left_out)


def _probed(documents: list[Document], service: Document, *, may_sleep: bool) -> tuple[list[Document], tuple[str, ...]]:
    """The documents with the probe that asks this service, or, where its last replica may go, with none."""
    metadata, probes = service["metadata"], [one for one in documents if one.get("kind") == "Probe"]
    if may_sleep and probes:
        note = f"{probes[0]['metadata']['name']} is left out: it would keep a replica up; delete it if it was applied"
        return [one for one in documents if one not in probes], (note,)
    for probe in probes:
        if "namespace" not in metadata:
            raise RenderError("the probe asks from another namespace, and --base names none; give an overlay's part")
        url = f"http://{metadata['name']}-serve-svc.{metadata['namespace']}:{SERVE_PORT}/readyz"
        probe["spec"]["targets"]["staticConfig"]["static"] = [url]
    return documents, ()


def _serve(recipe: Recipe, _documents: list[Document]) -> Rendered:
    config, notes = _serve_config(recipe, url=serve_url())
    return Rendered(_text([config]), notes)


def _submit(recipe: Recipe, _documents: list[Document]) -> Rendered:
    """The body of `POST /api/jobs/`, for programs without our code: what runs is the nodes' own. The recipe comes along
    in the command, where whoever may list jobs can read it; `tailorbird submit` ships both apart."""
    encoded = base64.b64encode(recipe_text(recipe).encode()).decode()
    body = {
        "submission_id": _once(recipe),
        "entrypoint": f"echo {encoded} | base64 -d | python -m tailorbird run /dev/stdin",
        "metadata": {"recipe": recipe.name},
    }
    return Rendered(json.dumps(body, indent=1) + "\n")


@dataclass(frozen=True)
class _Door:
    write: Callable[[Recipe, list[Document]], Rendered]
    template: str | None = None
    """Under `k8s/`; None of what is no manifest."""


DOORS = {
    "rayjob": _Door(_rayjob, "jobs/run/rayjob.yaml"),
    "rayservice": _Door(_rayservice, "base/service/rayservice.yaml"),
    "promote": _Door(_promote, "jobs/promote/promote.yaml"),
    "prove": _Door(_prove, "jobs/promote/promote.yaml"),
    "watch": _Door(_watch, "jobs/watch/watch.yaml"),
    "serve": _Door(_serve),
    "submit": _Door(_submit),
}


def _serve_config(recipe: Recipe, *, url: str) -> tuple[Document, tuple[str, ...]]:
    """What Serve is told to serve the champion at `url`."""
    from tailorbird.registry.champion import champion_version, read_champion
    from tailorbird.release.serving import additional_versions  # takes seconds, and no other door needs it

    found = read_champion(recipe.task_uri)
    if found is None:
        raise RenderError(f"{recipe.task_uri} has no champion; `tailorbird promote RECIPE` makes one")
    champion, config = found[0], recipe.serving
    _refuse_open_door(config, url=url)
    version = champion_version(champion)
    require_unchanged(version.code)  # a manifest is as trusted as a deploy, and brings the same code
    additional = additional_versions(config, task_uri=recipe.task_uri, champion=champion, version=version)
    application = application_of(
        config, task_uri=recipe.task_uri, version=version, additional=additional, verdict=champion.verdict
    )
    return serve_body([application], url=url), _unproven(champion)


def _refuse_open_door(config: ServingConfig, *, url: str) -> None:
    """As `serving.deploy` refuses it of a Serve that runs."""
    host = listen_host(url)
    if config.api_keys is None and not config.guarded and host not in LOCAL:
        raise RenderError(
            "serving.api_keys is not set, and this Serve can be reached from other machines: `tailorbird key NAME` "
            "makes a key; or, where a gateway keeps strangers out, set serving.guarded=true"
        )


def _unproven(champion: "Champion") -> tuple[str, ...]:
    from tailorbird.registry.champion import WAY_BACK

    if champion.parity is not None or champion.reason.startswith(WAY_BACK):
        return ()
    asks = "`tailorbird serve RECIPE`, or the job of --to prove, asks it once it is up"
    return (f"{champion.version} has answered no test rows yet: {asks}",)


def _size(groups: list[Document], *, cpus: int, gpus: int, fewest: int, most: int) -> None:
    """Gives the first group whose pods can hold such processes room for `fewest` to `most` of them; no other group has
    pods to begin with. A group that keeps more pods than that by the overlay goes on keeping them."""
    chosen, held = None, 0
    for group in groups:
        resources = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cores, cards = _number(resources["cpu"]), _number(resources.get("nvidia.com/gpu", "0"))
        if bool(cards) != bool(gpus):
            continue
        held = min(math.floor(cores / cpus), math.floor(cards / gpus) if gpus else most)
        if held >= 1:
            chosen = group
            break
    if chosen is None:
        told = ", ".join(str(group["groupName"]) for group in groups)
        raise RenderError(
            f"no group of workers has pods with {cpus} cores and {gpus} GPUs, which one process of this recipe takes "
            f"(groups: {told}); ask for less, or add a group, as k8s/components/spot-gpu does"
        )
    for group in groups:
        if group is not chosen:
            group["replicas"] = group["minReplicas"] = 0
    chosen["minReplicas"] = max(chosen["minReplicas"], math.ceil(fewest / held))
    chosen["maxReplicas"] = max(chosen["minReplicas"], math.ceil(most / held))
    chosen["replicas"] = chosen["minReplicas"]


def _claim(documents: Sequence[Document], *, label: str, name: str, owner: Document) -> None:
    """Writes whose the documents are wherever the label stands; what stands beside the owner gets a name for it."""
    for document in documents:
        if _relabel(document, label=label, name=name) and document is not owner:
            document["metadata"]["name"] += f"-{name}"


def _relabel(value: Any, *, label: str, name: str) -> bool:
    """Whether the label stood anywhere within."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    found = sum(_relabel(one, label=label, name=name) for one in inner) > 0  # in all of them
    if isinstance(value, dict) and label in value:
        value[label], found = name, True
    return found


def _number(quantity: str | float) -> float:
    """Kubernetes' quantity of cores or cards: `4`, `0.5` or `500m`."""
    text = str(quantity)
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def _mounted(recipe: Recipe, pod: Document, *, owner: Document) -> Document:
    """The recipe as a ConfigMap of the owner's, which the pod's volume names from now on."""
    metadata = owner["metadata"]
    name = f"recipe-{metadata['name']}-{digest(recipe)[:NUM_DIGITS]}"
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "recipe")
    volume["configMap"]["name"] = name
    kept = {key: metadata[key] for key in ("namespace", "labels") if key in metadata}
    data = {Path(RECIPE_FILE).name: recipe_text(recipe)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **kept},
        "immutable": True,
        "data": data,
    }


def _once(recipe: Recipe, *, image: str = "") -> str:
    """A name for what is run once: the same recipe on the same image has the same, so that it is not run twice."""
    named = digest({"recipe": recipe.model_dump(mode="json"), "image": image})[:NUM_DIGITS]
    return f"{_label(recipe.name, most=MOST_CHARACTERS - NUM_DIGITS - 1)}-{named}"


def _label(name: str, *, most: int) -> str:
    """The name as Kubernetes takes it: a letter first, at most so long; one that is cut ends with its digest."""
    whole = name if name[0].isalpha() else f"t-{name}"
    if len(whole) > most:
        whole = f"{whole[: most - NUM_DIGITS - 1]}-{digest({'name': name})[:NUM_DIGITS]}"
    return re.sub(r"-+$", "", whole)


def _documents(base: str | None, *, template: Path) -> list[Document]:
    if base is None:
        try:
            base = template.read_text(encoding="utf-8")
        except OSError:
            raise RenderError(
                f"{template} is not there: give --base, as in `kubectl kustomize k8s/overlays/prod/job | tailorbird "
                "render RECIPE --to rayjob --base -`"
            ) from None
    try:
        # By JSON, so that what was one by an anchor is many, and can be changed apart.
        return [json.loads(json.dumps(document)) for document in yaml.safe_load_all(base) if document]
    except yaml.YAMLError as error:
        raise RenderError(f"--base is not YAML: {error}") from None


def _only(documents: Sequence[Document], *, kind: str) -> Document:
    found = [document for document in documents if isinstance(document, dict) and document.get("kind") == kind]
    if len(found) != 1:
        raise RenderError(f"--base holds {len(found)} documents of kind {kind}; give the overlay's part that has one")
    return found[0]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they read; nothing by reference."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _text(documents: Sequence[Document]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16)
