"""Versions are deployed, staged, switched and refused while clients are answered."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster import code_snapshot
from cluster.dashboard import request_dashboard
from serving.deploy import readiness, rollout, serve_client
from serving.deploy.application import replica_config
from serving.engines.classify import predict_texts
from tailorbird import PACKAGES, storage
from tailorbird.models import loading
from tailorbird.registry.versions import VersionConfig, register, write_config
from tailorbird.release.manifests import render_manifest
from tailorbird.storage import node_cache
from tests.build import recipe
from tests.champions import set_champion
from tests.integration.serving.classification.service import (
    CONFIG,
    TEXTS,
    Service,
    replica_pids,
)
from tests.integration.small import ROOT
from tests.loaded import load_model


def test_a_change_of_champion_under_load_gives_each_answer_by_its_stated_version(
    service: Service,
) -> None:
    versions = {version.version: version for version in (service.first, service.swapped)}
    wanted = {}
    for name, version in versions.items():
        loaded = load_model(version.uri, loading.LoadedClassifier)
        predictions = predict_texts(loaded, TEXTS, batch_size=4)
        wanted[name] = [prediction.label for prediction in predictions]
    assert wanted[service.first.version] != wanted[service.swapped.version]
    done = threading.Event()

    def send_requests(_: int) -> list[str]:
        seen = []
        while not done.is_set():
            answer = service.ask({"input": TEXTS})
            assert [result["label"] for result in answer["results"]] == wanted[answer["version"]]
            seen.append(answer["version"])
        return seen

    replicas = replica_pids(service.task_uri)
    with ThreadPoolExecutor(8) as clients:
        requesting = [clients.submit(send_requests, number) for number in range(8)]
        try:
            with rollout.staged(service.task_uri, version=service.swapped) as url:
                assert url == service.url
                answer = service.ask({"input": TEXTS, "model": service.swapped.version})
                assert [result["label"] for result in answer["results"]] == wanted[
                    service.swapped.version
                ]
                assert service.ask({"input": TEXTS})["version"] == service.first.version
            for version in (service.swapped, service.first):
                rollout.switch_version(
                    service.task_uri, version=version, baseline=None, verdict=None
                )
                assert service.ask({"input": TEXTS})["version"] == version.version
        finally:
            done.set()
        seen = [client.result() for client in requesting]
    assert {name for names in seen for name in names} == set(versions)
    assert replica_pids(service.task_uri) == replicas


def test_a_version_that_differs_from_the_registered_one_is_refused_and_the_previous_still_serves(
    service: Service, tmp_path: Path
) -> None:
    with pytest.raises(serve_client.VersionRefusedError, match="0" * 64):
        service.deploy(service.second.model_copy(update={"digest": "0" * 64}))
    declared = serve_client.declared_applications()["serving-test"]
    assert replica_config(declared).champion.digest == service.first.digest
    for name in ("config.json", "extra.json"):  # a changed and an added file
        folder = tmp_path / name
        shutil.copytree(node_cache.local_copy(service.second.uri), folder)
        (folder / "manifest.json").unlink()
        config = VersionConfig.model_validate_json((folder / "config.json").read_bytes())
        # gives each case a version of its own
        write_config(folder, config.model_copy(update={"recipe_hash": name}))
        version = register(service.task_uri, folder)
        storage.write_bytes(f"{version.uri}/{name}", (folder / "config.json").read_bytes() + b"\n")
        with pytest.raises(serve_client.VersionRefusedError, match=name):
            service.deploy(version)
        assert service.ask({"input": TEXTS[0]})["version"] == service.first.version


@pytest.mark.long
def test_a_second_application_runs_its_shipped_code_and_does_not_change_the_first(
    service: Service, tmp_path: Path
) -> None:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    module = tmp_path / "serving" / "replica" / "base.py"
    module.write_text(module.read_text().replace('{"status":"up"}', '{"status":"shipped"}'))
    task_uri = "s3://models/serving-other"
    shipped = code_snapshot.ship_code(task_uri, tmp_path)
    url = rollout.deploy(
        CONFIG, task_uri=task_uri, version=service.second.model_copy(update={"code": shipped.uri})
    )
    try:
        assert url == f"{service.url}/serving-other"
        assert requests.get(f"{url}/healthz", timeout=60).json() == {"status": "shipped"}
        assert requests.get(f"{service.url}/healthz", timeout=60).json() == {"status": "up"}
        assert storage.exists(shipped.uri)
    finally:
        rollout.undeploy("serving-other")
    other = service.second.model_copy(update={"code": shipped.uri})
    # The champion's replicas cannot load other code, so the version gets a separate application.
    with rollout.staged(service.task_uri, version=other) as staged_url:
        assert staged_url == f"{service.url}/serving-test_candidate"
        assert requests.get(f"{staged_url}/healthz", timeout=60).json() == {"status": "shipped"}
        body = {"input": TEXTS[0], "model": service.second.version}
        assert requests.post(f"{staged_url}/v1/classify", json=body, timeout=60).status_code == 200
        assert requests.get(f"{service.url}/healthz", timeout=60).json() == {"status": "up"}
    assert set(serve_client.serve_applications()) == {"serving-test"}
    assert service.ask({"input": TEXTS[0]})["version"] == service.first.version


def test_the_rendered_configuration_equals_the_deployed_one_and_a_repeated_put_changes_no_replica(
    service: Service,
) -> None:
    config = CONFIG.model_copy(update={"versions": 0})
    rollout.deploy(config, task_uri=service.task_uri, version=service.first)
    set_champion(service.task_uri, service.first, reason="for this test")
    task = recipe(name="serving-test", serving=config)
    manifest = yaml.safe_load(render_manifest(task, to="serve").text)
    ServeDeploySchema.model_validate(manifest)
    (application,) = manifest["applications"]
    declared = serve_client.declared_applications()
    deployed = declared.pop("serving-test").to_json()
    assert application == {name: deployed[name] for name in application}
    before = readiness.running_replicas(serve_client.serve_applications()["serving-test"])
    applications = [*(other.to_json() for other in declared.values()), application]
    answer = request_dashboard(
        "PUT", serve_client.APPLICATIONS, body=manifest | {"applications": applications}
    )
    assert answer.status_code == 200, answer.text
    for _ in range(10):  # Serve applies its configuration every tenth of a second
        time.sleep(0.2)
        assert service.ask({"input": "Cholera"})["version"] == service.first.version
        assert (
            readiness.running_replicas(serve_client.serve_applications()["serving-test"]) == before
        )
    service.deploy(service.first)
