"""A rendered manifest contains the recipe and has room for its workers."""

import json
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
    RUN,
    SERVICE,
    ServedChampion,
    endpoint_keys,
    render_manifest,
)
from tests.k8s.crds import needs_crds, validator
from tests.k8s.manifests import ROOT, matches, of_kind, pods_of, text_of
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


def groups(documents: list[dict[str, Any]]) -> dict[str, tuple[int, int, int]]:
    (job,) = of_kind(documents, "RayJob")
    return {
        group["groupName"]: (group["replicas"], group["minReplicas"], group["maxReplicas"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }


@pytest.mark.parametrize(
    "overrides", [(), ("training.seed=3", "name=another", "data.max_train_rows=99")]
)
@pytest.mark.parametrize(
    ("to", "part"),
    [
        ("rayjob", "prod/job"),
        ("rayjob", "dev/job"),
        ("prove", "prod/promote"),
        ("watch", "prod/watch"),
        ("preflight", "dev/preflight"),
    ],
)
def test_a_manifest_mounts_the_recipe_at_the_path_of_its_command(
    to: str, part: str, overrides: tuple[str, ...]
) -> None:
    documents = rendered(to, *overrides, part=part)
    (owner,) = of_kind(documents, "RayJob", "Job", "CronJob")
    if to == "rayjob":
        pod = owner["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        command = owner["spec"]["entrypoint"].removesuffix(" --keep-log")
    else:
        of_job = owner["spec"]["jobTemplate"]["spec"] if to == "watch" else owner["spec"]
        pod = of_job["template"]["spec"]
        command = " ".join(pod["containers"][0]["command"]).partition(" --push ")[0]
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "recipe")
    (mount,) = (
        mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "recipe"
    )
    (config,) = (
        document
        for document in documents
        if document["metadata"]["name"] == volume["configMap"]["name"]
    )
    assert config["metadata"]["namespace"] == owner["metadata"]["namespace"]
    ((file, text),) = config["data"].items()
    assert f"{mount['mountPath']}/{file}" in command.split()
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe(*overrides)


def _without_job(documents: list[Any]) -> list[Any]:
    return [document for document in documents if document["kind"] != "RayJob"]


def test_the_rest_of_the_overlay_is_unchanged() -> None:
    after = rendered("rayjob")
    (job,) = of_kind(after, "RayJob")
    name = job["metadata"]["name"]
    text = text_of("prod/job").replace(f"{RUN}: run\n", f"{RUN}: {name}\n")
    text = re.sub(r"name: (within-training|ray-settings-\w+)\n", rf"name: \1-{name}\n", text)
    before = list(yaml.safe_load_all(text))
    (expected,) = of_kind(before, "RayJob")
    for document in before:
        document["metadata"]["labels"] = expected["metadata"]["labels"]
    assert _without_job(after)[1:] == _without_job(before)
    volume = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    expected["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"] = volume
    for own, other in zip(
        *(manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"] for manifest in (job, expected)),
        strict=True,
    ):
        other |= {key: own[key] for key in ("replicas", "minReplicas", "maxReplicas")}
    expected["spec"]["entrypoint"] = job["spec"]["entrypoint"]
    expected["metadata"]["name"] = name
    assert job == expected


@pytest.mark.parametrize(
    ("overrides", "cpu", "gpu"),
    [
        ((), (1, 1, 1), (0, 0, 4)),  # two workers of one core each in a pod of four cores
        (("training.num_workers=8",), (2, 2, 2), (0, 0, 4)),
        (("training.num_workers=4", "training.cpus_per_worker=3"), (4, 4, 4), (0, 0, 4)),
        (("training.num_workers=[7, 8]", "training.batch_size=56"), (2, 2, 2), (0, 0, 4)),
        (("training.num_workers=[1, 5]", "training.batch_size=60"), (1, 1, 2), (0, 0, 4)),
        (("tuning.max_concurrent_trials=3", "training.cpus_per_worker=2"), (1, 1, 3), (0, 0, 4)),
        (
            ("tuning.max_concurrent_trials=8", "tuning.num_trials=4", "training.cpus_per_worker=2"),
            (1, 1, 4),
            (0, 0, 4),
        ),
        (("training.num_workers=4", "training.gpus_per_worker=1"), (0, 0, 1), (4, 4, 4)),
        (
            ("training.num_workers=[1, 2]", "training.gpus_per_worker=1"),
            (0, 0, 1),
            (1, 1, 2),
        ),
    ],
)
def test_the_worker_group_that_fits_has_pods_for_all_workers(
    overrides: tuple[str, ...], cpu: tuple[int, int, int], gpu: tuple[int, int, int]
) -> None:
    assert groups(rendered("rayjob", *overrides)) == {"cpu": cpu, "gpu-spot": gpu}


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
        (job,) = of_kind(rendered("rayjob", *overrides, part=part), "RayJob")
        return str(job["metadata"]["name"])

    assert name() == name()
    assert len({name(), name("training.seed=1"), name(part="dev/job")}) == 3


@pytest.mark.parametrize("part", ["dev/job", "staging/job", "prod/job"])
def test_kuberay_accepts_a_rendered_job(part: str) -> None:
    (job,) = of_kind(rendered("rayjob", "training.num_workers=8", part=part), "RayJob")
    validator(needs_crds(), "RayJob").validate(job)


@pytest.mark.parametrize(("to", "verb"), [("promote", "promote"), ("prove", "serve")])
def test_a_client_job_has_its_command_and_the_addresses_of_the_service(to: str, verb: str) -> None:
    (job,) = of_kind(rendered(to, part="prod/promote"), "Job")
    assert job["metadata"]["name"] == f"{verb}-icd10-chapters"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:4] == ["python", "-m", "tailorbird", verb]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["RAY_API_SERVER_ADDRESS"] == "http://icd10-chapters-head-svc:8265"
    assert env["TAILORBIRD_SERVE_URL"] == "http://icd10-chapters-serve-svc:8000"
    assert env["TAILORBIRD_RAYSERVICE"] == "icd10-chapters"  # the name of the rendered RayService


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_the_probe_requests_the_rendered_service(name: str) -> None:
    (service,) = of_kind(
        rendered("rayservice", "name=9-lives", *DRAINABLE, part=f"{name}/service"), "RayService"
    )
    (probe,) = of_kind(rendered("monitoring", "name=9-lives", part=f"{name}/monitoring"), "Probe")
    metadata = service["metadata"]
    # the operator's name for it, from another namespace
    host = f"{metadata['name']}-serve-svc.{metadata['namespace']}"
    assert probe["spec"]["targets"]["staticConfig"]["static"] == [f"http://{host}:8000/readyz"]


@pytest.mark.parametrize(
    ("to", "part", "omitted", "note", "num_monitors"),
    [
        ("rayservice", "prod/service", "PodDisruptionBudget", "serving-workers-icd10-chapters", 0),
        ("monitoring", "prod/monitoring", "Probe", "it would keep a replica up", 3),
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


@pytest.mark.parametrize(
    ("to", "part"), [("rayservice", "staging/service"), ("rayjob", "prod/job")]
)
def test_budgets_policies_and_spread_constraints_select_only_their_own_service_or_run(
    to: str, part: str
) -> None:
    documents = rendered(to, "name=one", part=part)
    other_documents = rendered(to, "name=two", part=part)
    label = SERVICE if to == "rayservice" else RUN
    kinds = ("PodDisruptionBudget", "NetworkPolicy")
    selectors = {
        document["metadata"]["name"]: document["spec"].get("podSelector")
        or document["spec"]["selector"]
        for document in of_kind(documents, *kinds)
        if label in json.dumps(document)
    }
    services = {"within-serving", "serving-head", "gateway-to-serve", "client-to-serving"}
    owned = services if to == "rayservice" else {"within-training"}
    own_name = of_kind(documents, "RayService", "RayJob")[0]["metadata"]["name"]
    assert set(selectors) == {f"{name}-{own_name}" for name in owned}
    assert not set(selectors) & {
        document["metadata"]["name"] for document in of_kind(other_documents, *kinds)
    }
    spread = [
        constraint["labelSelector"]
        for pod in pods_of(documents)
        for constraint in pod.spec.get("topologySpreadConstraints", [])
    ]
    assert bool(spread) is (to == "rayservice")
    for selector in (*selectors.values(), *spread):
        assert any(matches(selector, pod.labels) for pod in pods_of(documents))
        assert not any(matches(selector, pod.labels) for pod in pods_of(other_documents))
    for policy in of_kind(documents, "NetworkPolicy"):
        if policy["metadata"]["name"] in selectors:
            (peer,) = policy["spec"]["ingress"][0]["from"]
            assert not any(
                matches(peer["podSelector"], pod.labels) for pod in pods_of(other_documents)
            )


def test_the_resources_of_a_run_are_selected_by_its_label() -> None:
    documents = rendered("rayjob")
    (name,) = {document["metadata"]["name"] for document in of_kind(documents, "RayJob")}
    labelled = [
        document["kind"]
        for document in documents
        if document["metadata"].get("labels", {}).get(RUN) == name
    ]
    assert sorted(labelled) == sorted(document["kind"] for document in documents)


def test_the_key_of_an_endpoint_is_read_from_a_secret() -> None:
    endpoint = (
        "evaluation.contenders.hosted.endpoint={url: 'https://host/v1', model: m, "
        "api_key: 'env://HOST_KEY'}"
    )
    (job,) = of_kind(rendered("rayjob", endpoint), "RayJob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    reference = {"secretKeyRef": {"name": "endpoint-keys", "key": "HOST_KEY"}}
    assert {"name": "HOST_KEY", "valueFrom": reference} in head["containers"][0]["env"]
    assert "HOST_KEY" not in str(of_kind(rendered("rayjob"), "RayJob"))


def test_a_run_and_a_watch_have_the_keys_of_endpoints_for_the_champion() -> None:
    (job,) = of_kind(rendered("rayjob"), "RayJob")
    (watch,) = of_kind(rendered("watch", part="prod/watch"), "CronJob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    keys = {"secretRef": {"name": ENDPOINT_KEYS, "optional": True}}
    for pod in (head, watch["spec"]["jobTemplate"]["spec"]["template"]["spec"]):
        assert keys in pod["containers"][0]["envFrom"]
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert keys not in group["template"]["spec"]["containers"][0]["envFrom"]


def test_the_replicas_of_an_endpoint_have_its_key_and_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    champion = ServedChampion({}, without_gpu=True, keys=("HOST_KEY",))
    monkeypatch.setattr("tailorbird.release.manifests._serve_config", lambda *_, **__: champion)
    overrides = ("serving.gpus_per_replica=1", *DRAINABLE)
    (service,) = of_kind(rendered("rayservice", *overrides, part="prod/service"), "RayService")
    (group,) = (
        group
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        if group["replicas"]
    )
    (container,) = group["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    reference = {"secretKeyRef": {"name": "endpoint-keys", "key": "HOST_KEY"}}
    assert {"name": "HOST_KEY", "valueFrom": reference} in container["env"]
    assert {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "150"} in container["env"]


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


def test_without_a_base_the_template_in_k8s_is_filled_in() -> None:
    (config, job) = yaml.safe_load_all(render_manifest(recipe(), to="rayjob").text)
    assert (config["kind"], job["kind"]) == ("ConfigMap", "RayJob")


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
        ("preflight", "prod/preflight"),
        ("rayjob", "prod/job"),
        ("promote", "prod/promote"),
        ("prove", "prod/promote"),
        ("watch", "prod/watch"),
    ],
)
def test_two_tasks_of_a_namespace_share_no_document_and_no_store(to: str, part: str) -> None:
    """A prune or a deletion of one task would remove the shared ones of the other."""
    first = rendered(to, "name=first", *DRAINABLE, part=part)
    second = rendered(to, "name=second", *DRAINABLE, part=part)
    names = {(document["kind"], document["metadata"]["name"]) for document in first}
    assert len(names) == len(first)
    assert not names & {(document["kind"], document["metadata"]["name"]) for document in second}
    settings = {name for kind, name in names if kind == "ConfigMap"}
    for pod in pods_of(first):
        for container in pod.containers:
            sources = [
                source["configMapRef"]["name"]
                for source in container.get("envFrom", [])
                if source.keys() == {"configMapRef"}
            ]
            assert set(sources) <= settings
    for job in of_kind(first, "CronJob"):
        (gateway,) = of_kind(first, "Service")
        assert f"http://{gateway['metadata']['name']}:9091" in str(job)
        selector = {"matchLabels": gateway["spec"]["selector"]}
        assert [matches(selector, pod.labels) for pod in pods_of(first)].count(True) == 1
        assert not any(matches(selector, pod.labels) for pod in pods_of(second))
    for service in of_kind(first, "RayService"):
        address = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
        (store,) = of_kind(first, "Service")
        (database,) = of_kind(first, "StatefulSet")
        assert address == f"{store['metadata']['name']}:6379"
        assert database["spec"]["serviceName"] == store["metadata"]["name"]
        selectors = [{"matchLabels": store["spec"]["selector"]}, database["spec"]["selector"]]
        for selector in selectors:
            assert [matches(selector, pod.labels) for pod in pods_of(first)].count(True) == 1
            assert not any(matches(selector, pod.labels) for pod in pods_of(second))


@pytest.mark.parametrize("name", ["ours", "7-days", "a" * 63, f"{'a' * 24}-{'b' * 38}"])
def test_the_label_of_a_pushgateway_is_the_name_of_its_cron_job(name: str) -> None:
    """The alerts on a watch match the series of its Pushgateway by this label."""
    documents = rendered("watch", f"name={name}", part="prod/watch")
    (job,) = of_kind(documents, "CronJob")
    (gateway,) = (
        pod for pod in pods_of(documents) if pod.labels["tailorbird.io/role"] == "pushgateway"
    )
    assert gateway.labels["tailorbird.io/watch"] == job["metadata"]["name"]
    assert re.fullmatch("watch-.+", job["metadata"]["name"])


def test_the_operator_does_not_cut_the_names_of_a_services_and_a_runs_dependents() -> None:
    """The operator keeps the last 50 characters of a name that it derives."""
    long = f"name={'a' * 63}"
    documents = rendered("rayservice", long, *DRAINABLE, part="prod/service")
    (service,) = of_kind(documents, "RayService")
    (job,) = of_kind(rendered("rayjob", long), "RayJob")
    name = service["metadata"]["name"]
    (client,) = of_kind(rendered("promote", long, part="prod/promote"), "Job")
    env = {
        each["name"]: each.get("value")
        for each in client["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    for variable, suffix, port in (
        ("RAY_API_SERVER_ADDRESS", "head-svc", 8265),
        ("TAILORBIRD_SERVE_URL", "serve-svc", 8000),
    ):
        assert env[variable] == f"http://{f'{name}-{suffix}'[-50:]}:{port}"
    secret = f"{job['metadata']['name']}-abcde"  # of the token; has the name of the run's cluster
    assert len(secret) <= 50
    (database,) = of_kind(documents, "StatefulSet")
    # Kubernetes appends a hash of 10 characters in a label of its pods.
    assert len(database["metadata"]["name"]) <= 52


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (
            ("serving.autoscaling.min_replicas=1",),
            "serving.autoscaling.min_replicas=2 and serving.autoscaling.max_replicas_per_node=1",
        ),
        # Two replicas fit one pod of four cores, and Serve may put them there.
        (
            DRAINABLE[:2],
            "serving.autoscaling.min_replicas=2 and serving.autoscaling.max_replicas_per_node=1",
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
                "serving.autoscaling.min_replicas=2",
                "serving.autoscaling.max_replicas=3",
                "serving.cpus_per_replica=4",
            ),
            (2, 4),
        ),
        (
            (
                "serving.autoscaling.min_replicas=4",
                "serving.autoscaling.max_replicas=8",
                "serving.autoscaling.max_replicas_per_node=3",
            ),
            (2, 3),
        ),
        (("serving.autoscaling.min_replicas=5", "serving.autoscaling.max_replicas=5"), (2, 2)),
    ],
)
def test_a_service_on_several_nodes_keeps_its_budget(
    overrides: tuple[str, ...], bounds: tuple[int, int]
) -> None:
    documents = rendered("rayservice", *overrides, part="prod/service")
    (service,) = of_kind(documents, "RayService")
    (budget,) = of_kind(documents, "PodDisruptionBudget")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == bounds
    assert budget["metadata"]["name"] == "serving-workers-icd10-chapters"


def test_in_staging_one_replica_may_be_interrupted_and_the_head_must_be_released_by_hand() -> None:
    done = render_manifest(
        recipe("serving.autoscaling.min_replicas=1"),
        to="rayservice",
        base=text_of("staging/service"),
    )
    (budget,) = of_kind(list(yaml.safe_load_all(done.text)), "PodDisruptionBudget")
    assert budget["metadata"]["name"] == "serving-head-icd10-chapters"
    assert "serving-head-icd10-chapters" in done.notes[0]
