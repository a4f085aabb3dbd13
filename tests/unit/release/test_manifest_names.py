"""The names in rendered manifests: two tasks of a namespace share none, and the operator cuts
none."""

import re
from typing import Any

import pytest
import yaml

from tailorbird.config.loader import load_recipe
from tailorbird.release.manifests import ServedChampion, render_manifest
from tests.k8s.manifests import ROOT, matches, of_kind, pods_of, text_of

SPREAD = ("serving.autoscaling.min_replicas=2", "serving.autoscaling.max_replicas_per_node=1")
"""Overrides with which the nodes of a service can be drained."""


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Serve's configuration, which needs a registry and is tested with a real S3 server."""
    monkeypatch.setattr(
        "tailorbird.release.manifests._serve_config", lambda *_, **__: ServedChampion({})
    )


def rendered(to: str, name: str, *, part: str) -> list[dict[str, Any]]:
    recipe = load_recipe(
        ROOT / "recipes" / "icd10_chapters.yaml", overrides=(f"name={name}", *SPREAD)
    )
    return list(yaml.safe_load_all(render_manifest(recipe, to=to, base=text_of(part)).text))


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
    ours, theirs = (rendered(to, name, part=part) for name in ("ours", "theirs"))
    names = {(document["kind"], document["metadata"]["name"]) for document in ours}
    assert len(names) == len(ours)
    assert not names & {(document["kind"], document["metadata"]["name"]) for document in theirs}
    settings = {name for kind, name in names if kind == "ConfigMap"}
    for pod in pods_of(ours):
        for container in pod.containers:
            sources = [
                source["configMapRef"]["name"]
                for source in container.get("envFrom", [])
                if source.keys() == {"configMapRef"}
            ]
            assert set(sources) <= settings
    for job in of_kind(ours, "CronJob"):
        (gateway,) = of_kind(ours, "Service")
        assert f"http://{gateway['metadata']['name']}:9091" in str(job)
        selector = {"matchLabels": gateway["spec"]["selector"]}
        assert [matches(selector, pod.labels) for pod in pods_of(ours)].count(True) == 1
        assert not any(matches(selector, pod.labels) for pod in pods_of(theirs))
    for service in of_kind(ours, "RayService"):
        address = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
        (store,) = of_kind(ours, "Service")
        (database,) = of_kind(ours, "StatefulSet")
        assert address == f"{store['metadata']['name']}:6379"
        assert database["spec"]["serviceName"] == store["metadata"]["name"]
        selectors = [{"matchLabels": store["spec"]["selector"]}, database["spec"]["selector"]]
        for selector in selectors:
            assert [matches(selector, pod.labels) for pod in pods_of(ours)].count(True) == 1
            assert not any(matches(selector, pod.labels) for pod in pods_of(theirs))


@pytest.mark.parametrize("name", ["ours", "7-days", "a" * 63, f"{'a' * 24}-{'b' * 38}"])
def test_the_label_of_a_pushgateway_is_the_name_of_its_cron_job(name: str) -> None:
    """The alerts on a watch match the series of its Pushgateway by this label."""
    documents = rendered("watch", name, part="prod/watch")
    (job,) = of_kind(documents, "CronJob")
    (gateway,) = (
        pod for pod in pods_of(documents) if pod.labels["tailorbird.io/role"] == "pushgateway"
    )
    assert gateway.labels["tailorbird.io/watch"] == job["metadata"]["name"]
    assert re.fullmatch("watch-.+", job["metadata"]["name"])


def test_the_operator_does_not_cut_the_names_of_a_services_and_a_runs_dependents() -> None:
    """The operator keeps the last 50 characters of a name that it derives."""
    long = "a" * 63
    (service,), (job,) = (
        of_kind(rendered(to, long, part=part), kind)
        for to, part, kind in (
            ("rayservice", "prod/service", "RayService"),
            ("rayjob", "prod/job", "RayJob"),
        )
    )
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
    (database,) = of_kind(rendered("rayservice", long, part="prod/service"), "StatefulSet")
    assert (
        len(database["metadata"]["name"]) <= 52
    )  # Kubernetes appends a hash of 10 characters in a label of its pods
