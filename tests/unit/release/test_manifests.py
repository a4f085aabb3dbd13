"""A rendered manifest contains the recipe and has room for its workers."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.versions import Hybrid, VersionConfig, register, write_config
from tailorbird.release.kube_documents import RenderError
from tailorbird.release.manifests import (
    ENDPOINT_KEYS,
    RECIPE_FILE,
    RUN,
    ServedChampion,
    endpoint_keys,
    render_manifest,
)
from tests.k8s.crds import needs_crds, validator
from tests.k8s.manifests import ROOT, build, matches, of_kind, pods_of, text_of
from tests.unit.serving.endpoint.versions import endpoint_version

FILE = ROOT / "recipes" / "icd10_chapters.yaml"
DRAINABLE = (
    "serving.autoscaling.min_replicas=2",
    "serving.autoscaling.max_replicas=3",
    "serving.autoscaling.max_replicas_per_node=1",
)


"""A service whose replicas always run on two nodes, as the budget of the overlay `prod`
requires."""


def recipe(*overrides: str) -> Recipe:
    return load_recipe(FILE, overrides=overrides)


def rendered(to: str, *overrides: str, part: str = "prod/job") -> list[dict[str, Any]]:
    return list(
        yaml.safe_load_all(render_manifest(recipe(*overrides), to=to, base=text_of(part)).text)
    )


def rendered_one(kind: str, to: str, *overrides: str, part: str = "prod/job") -> dict[str, Any]:
    """Return the only rendered document of a kind."""
    (document,) = of_kind(rendered(to, *overrides, part=part), kind)
    return document


@pytest.mark.parametrize(
    ("to", "part"),
    [("rayjob", "prod/job"), ("watch", "prod/watch"), ("preflight", "dev/preflight")],
)
def test_a_manifest_mounts_the_recipe_at_the_path_of_its_command(to: str, part: str) -> None:
    documents = rendered(to, "name=another", part=part)
    assert len(documents) == len(build(part)) + 1
    (config,) = (each for each in documents if each["metadata"]["name"].startswith("recipe-"))
    ((file, text),) = config["data"].items()
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe("name=another")
    (owner,) = of_kind(documents, "RayJob", "Job", "CronJob")
    assert config["metadata"]["namespace"] == owner["metadata"]["namespace"]
    assert RECIPE_FILE in str(owner["spec"])  # in the command
    (pod,) = (pod for pod in pods_of(documents) if config["metadata"]["name"] in str(pod.spec))
    (mount,) = (each for each in pod.containers[0]["volumeMounts"] if each["name"] == "recipe")
    assert f"{mount['mountPath']}/{file}" == RECIPE_FILE


@pytest.mark.parametrize(
    ("overrides", "cpu", "gpu"),
    [
        (("training.num_workers=[7, 9]", "training.batch_size=504"), (2, 2, 3), (0, 0, 4)),
        (
            ("tuning.max_concurrent_trials=8", "tuning.num_trials=4", "training.cpus_per_worker=2"),
            (1, 1, 4),
            (0, 0, 4),
        ),
        (("training.num_workers=4", "training.gpus_per_worker=1"), (0, 0, 1), (4, 4, 4)),
    ],
)
def test_the_worker_group_that_fits_has_pods_for_all_workers(
    overrides: tuple[str, ...], cpu: tuple[int, int, int], gpu: tuple[int, int, int]
) -> None:
    job = rendered_one("RayJob", "rayjob", *overrides)
    groups = {
        group["groupName"]: (group["replicas"], group["minReplicas"], group["maxReplicas"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert groups == {"cpu": cpu, "gpu-spot": gpu}


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("training.cpus_per_worker=5",), "prod/job"),
        (("training.gpus_per_worker=1",), "dev/job"),
        (("training.gpus_per_worker=1", "training.cpus_per_worker=9"), "prod/job"),
    ],
)
def test_a_worker_that_fits_no_pod_is_refused_with_the_list_of_groups(
    overrides: tuple[str, ...], part: str
) -> None:
    with pytest.raises(RenderError, match="groups: cpu"):
        rendered("rayjob", *overrides, part=part)


def test_the_name_of_a_run_depends_on_the_recipe_and_the_image() -> None:
    def name(*overrides: str, part: str = "prod/job") -> str:
        documents = rendered("rayjob", *overrides, part=part)
        (job,) = of_kind(documents, "RayJob")
        assert {each["metadata"]["labels"][RUN] for each in documents} == {job["metadata"]["name"]}
        return str(job["metadata"]["name"])

    assert name() == name()
    assert len({name(), name("training.seed=1"), name(part="dev/job")}) == 3


def test_kuberay_accepts_a_rendered_job() -> None:
    job = rendered_one("RayJob", "rayjob", "training.num_workers=8")
    validator(needs_crds(), "RayJob").validate(job)


def test_a_client_job_has_its_command_and_the_addresses_of_the_service() -> None:
    job = rendered_one("Job", "prove", part="prod/promote")
    assert job["metadata"]["name"] == "serve-icd10-chapters"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "tailorbird", "serve", RECIPE_FILE]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["RAY_API_SERVER_ADDRESS"] == "http://icd10-chapters-head-svc:8265"
    assert env["TAILORBIRD_SERVE_URL"] == "http://icd10-chapters-serve-svc:8000"
    assert env["TAILORBIRD_RAYSERVICE"] == "icd10-chapters"  # the name of the rendered RayService


def test_the_probe_requests_the_rendered_service() -> None:
    service = rendered_one(
        "RayService", "rayservice", "name=9-lives", *DRAINABLE, part="prod/service"
    )
    probe = rendered_one("Probe", "monitoring", "name=9-lives", part="prod/monitoring")
    metadata = service["metadata"]
    # the operator's name for it, from another namespace
    host = f"{metadata['name']}-serve-svc.{metadata['namespace']}"
    assert probe["spec"]["targets"]["staticConfig"]["static"] == [f"http://{host}:8000/readyz"]


@pytest.mark.parametrize(
    ("to", "part", "omitted", "note", "num_monitors"),
    [
        ("rayservice", "prod/service", "PodDisruptionBudget", "serving-workers-icd10-chapters", 0),
        ("monitoring", "prod/monitoring", "Probe", "it would keep a replica up", 2),
    ],
)
def test_a_service_that_scales_to_zero_has_neither_budget_nor_probe(
    to: str, part: str, omitted: str, note: str, num_monitors: int
) -> None:
    done = render_manifest(recipe("serving.autoscaling.min_replicas=0"), to=to, base=text_of(part))
    documents = list(yaml.safe_load_all(done.text))
    assert of_kind(documents, omitted) == []
    assert len(of_kind(documents, "PodMonitor", "PrometheusRule")) == num_monitors
    assert note in done.notes[0]


def test_a_probe_without_a_namespace_is_refused() -> None:
    with pytest.raises(RenderError, match="--base has no namespace"):
        render_manifest(recipe(), to="monitoring")


def test_the_key_of_an_endpoint_is_read_from_a_secret() -> None:
    endpoint = (
        "evaluation.contenders.hosted.endpoint={url: 'https://host/v1', model: m, "
        "api_key: 'env://HOST_KEY'}"
    )
    job = rendered_one("RayJob", "rayjob", endpoint)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    reference = {"secretKeyRef": {"name": "endpoint-keys", "key": "HOST_KEY"}}
    assert {"name": "HOST_KEY", "valueFrom": reference} in head["containers"][0]["env"]
    assert "HOST_KEY" not in str(of_kind(rendered("rayjob"), "RayJob"))


@pytest.mark.parametrize(
    ("to", "part", "role"), [("rayjob", "prod/job", "training"), ("watch", "prod/watch", "watch")]
)
def test_only_the_head_of_a_run_and_a_watch_have_the_keys_of_endpoints_for_the_champion(
    to: str, part: str, role: str
) -> None:
    keys = {"secretRef": {"name": ENDPOINT_KEYS, "optional": True}}
    (pod,) = (pod for pod in pods_of(rendered(to, part=part)) if ENDPOINT_KEYS in str(pod.spec))
    assert pod.labels["tailorbird.io/role"] == role
    assert pod.labels.get("ray.io/node-type", "head") == "head"
    assert keys in pod.containers[0]["envFrom"]


def test_the_replicas_of_an_endpoint_have_its_key_and_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    champion = ServedChampion({}, without_gpu=True, keys=("HOST_KEY",))
    monkeypatch.setattr("tailorbird.release.manifests._serve_config", lambda *_, **__: champion)
    overrides = ("serving.gpus_per_replica=1", *DRAINABLE)
    service = rendered_one("RayService", "rayservice", *overrides, part="prod/service")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    reference = {"secretKeyRef": {"name": "endpoint-keys", "key": "HOST_KEY"}}
    assert {"name": "HOST_KEY", "valueFrom": reference} in container["env"]


def test_the_keys_of_a_hybrid_are_those_of_its_parts(tmp_path: Path) -> None:
    config = endpoint_version("http://127.0.0.1:1/v1").model_dump(
        include=set(VersionConfig.model_fields)
    )
    parts = []
    for variable in ("FIRST_KEY", "SECOND_KEY"):
        folder = tmp_path / variable
        folder.mkdir()
        endpoint = config["endpoint"] | {"api_key": f"env://{variable}"}
        write_config(folder, VersionConfig.model_validate(config | {"endpoint": endpoint}))
        parts.append(register((tmp_path / "models" / "task").as_uri(), folder))
    routing = Routing(by="group", column="sex", values=("f",))
    hybrid = Hybrid(routing=routing, first=parts[0].pinned, second=parts[1].pinned)
    both = parts[0].model_copy(update={"kind": "hybrid", "endpoint": None, "hybrid": hybrid})
    assert endpoint_keys([both, parts[1]]) == ("FIRST_KEY", "SECOND_KEY")
    assert endpoint_keys([parts[1]]) == ("SECOND_KEY",)


@pytest.mark.parametrize(
    ("to", "base", "message"),
    [
        ("helm", None, "rayjob"),
        ("serve", "a: b", "--base"),
        ("rayjob", "a: [", "YAML"),
        ("rayjob", "kind: RayJob\n---\nkind: RayJob", "2 documents"),
    ],
)
def test_an_invalid_target_or_base_is_refused(to: str, base: str | None, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render_manifest(recipe(), to=to, base=base)


@pytest.mark.parametrize(
    ("to", "part"),
    [
        ("rayservice", "prod/service"),
        ("rayservice", "staging/service"),
        ("preflight", "prod/preflight"),
        ("rayjob", "prod/job"),
        ("promote", "prod/promote"),
        ("watch", "prod/watch"),
    ],
)
def test_two_tasks_of_a_namespace_share_no_document_and_select_no_pod_of_each_other(
    to: str, part: str
) -> None:
    """A prune or a deletion of one task would remove the shared ones of the other."""
    first = rendered(to, "name=first", *DRAINABLE, part=part)
    second = rendered(to, "name=second", *DRAINABLE, part=part)
    names = {(document["kind"], document["metadata"]["name"]) for document in first}
    assert len(names) == len(first)
    assert not names & {(document["kind"], document["metadata"]["name"]) for document in second}
    settings = {name for kind, name in names if kind == "ConfigMap"}
    assert set(re.findall(r"'configMapRef': {'name': '([^']+)'", str(first))) <= settings
    for database in of_kind(first, "StatefulSet"):
        (service,) = of_kind(first, "RayService")
        address = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
        (store,) = of_kind(first, "Service")
        assert address == f"{store['metadata']['name']}:6379"
        assert database["spec"]["serviceName"] == store["metadata"]["name"]
        assert database["spec"]["selector"]["matchLabels"] == store["spec"]["selector"]
    selectors = [{"matchLabels": each["spec"]["selector"]} for each in of_kind(first, "Service")]
    budgets = of_kind(first, "PodDisruptionBudget")
    assert len(budgets) == (to == "rayservice")
    selectors += [budget["spec"]["selector"] for budget in budgets]
    peers = []
    policies = of_kind(first, "NetworkPolicy")
    if to == "promote":  # its policy selects the jobs of all tasks
        policies = []
    for policy in policies:
        selectors.append(policy["spec"]["podSelector"])
        for rule in policy["spec"].get("ingress", []):
            peers += [peer for peer in rule["from"] if "namespaceSelector" not in peer]
    for pod in pods_of(of_kind(first, "RayService")):
        constraints = pod.spec.get("topologySpreadConstraints", [])
        selectors += [constraint["labelSelector"] for constraint in constraints]
    for selector in selectors:
        assert any(matches(selector, pod.labels) for pod in pods_of(first))
    for selector in (*selectors, *(peer["podSelector"] for peer in peers)):
        assert not any(matches(selector, pod.labels) for pod in pods_of(second))


def test_the_operator_does_not_cut_the_names_of_a_services_and_a_runs_dependents() -> None:
    """The operator keeps the last 50 characters of a name that it derives."""
    long = f"name={'a' * 63}"
    documents = rendered("rayservice", long, *DRAINABLE, part="prod/service")
    (service,) = of_kind(documents, "RayService")
    job = rendered_one("RayJob", "rayjob", long)
    name = service["metadata"]["name"]
    assert len(f"{name}-serve-svc") <= 50
    secret = f"{job['metadata']['name']}-abcde"  # of the token; has the name of the run's cluster
    assert len(secret) <= 50
    (database,) = of_kind(documents, "StatefulSet")
    # Kubernetes appends a hash of 10 characters in a label of its pods.
    assert len(database["metadata"]["name"]) <= 52


TWO_NODES = "serving.autoscaling.min_replicas=2 and serving.autoscaling.max_replicas_per_node=1"


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (
            ("serving.autoscaling.min_replicas=1",),
            TWO_NODES,
        ),
        # Two replicas fit one pod of four cores, and Serve may put them there.
        (
            DRAINABLE[:2],
            TWO_NODES,
        ),
        (
            ("serving.autoscaling.min_replicas=4", "serving.autoscaling.max_replicas=4"),
            "serving.autoscaling.max_replicas_per_node=3",
        ),
    ],
)
def test_a_service_whose_nodes_could_never_be_drained_is_refused(
    overrides: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(RenderError, match=remedy):
        rendered("rayservice", *overrides, part="prod/service")


@pytest.mark.parametrize(
    ("overrides", "bounds"),
    [
        (DRAINABLE, (2, 4)),  # each pod has one replica; one more is for a candidate
        (
            (
                "serving.autoscaling.min_replicas=4",
                "serving.autoscaling.max_replicas=8",
                "serving.autoscaling.max_replicas_per_node=3",
            ),
            (2, 3),
        ),
    ],
)
def test_a_service_on_several_nodes_keeps_its_budget(
    overrides: tuple[str, ...], bounds: tuple[int, int]
) -> None:
    documents = rendered("rayservice", *overrides, part="prod/service")
    (service,) = of_kind(documents, "RayService")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == bounds
    assert len(of_kind(documents, "PodDisruptionBudget")) == 1
