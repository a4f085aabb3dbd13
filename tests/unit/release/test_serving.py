"""Resolution of a recipe's challenger to a version."""

from pathlib import Path

import pytest

from serving.deploy import serve_client
from serving.deploy.serve_client import DeployError
from tailorbird.registry.versions import (
    ModelVersion,
    RegistryError,
    register,
    write_config,
)
from tailorbird.release import serving
from tailorbird.release.runs import PromotionRefused
from tailorbird.release.serving import challenger_version, stop_service
from tests.build import version_config


@pytest.fixture
def version(tmp_path: Path) -> ModelVersion:
    folder = tmp_path / "made"
    folder.mkdir()
    write_config(folder, version_config(kind="full", classes=("a", "b")))
    for name in ("encoder.safetensors", "head.safetensors"):
        (folder / name).write_text(name)
    return register((tmp_path / "toy").as_uri(), folder)


@pytest.fixture
def task_uri(version: ModelVersion) -> str:
    return version.uri.partition("/versions/")[0]


@pytest.mark.parametrize(
    "name", ["../versions/full-1", "full-1/config.json", "s3://models/other/versions/full-1", "/"]
)
def test_a_name_that_is_not_a_version_of_the_task_is_refused(task_uri: str, name: str) -> None:
    with pytest.raises(PromotionRefused, match="run `tailorbird models` to list"):
        challenger_version(name, task_uri=task_uri)


def test_a_missing_version_and_a_candidate_without_a_run_are_refused(
    version: ModelVersion, task_uri: str
) -> None:
    assert challenger_version(f"{version.uri}/", task_uri=task_uri).version == version.version
    with pytest.raises(RegistryError, match="no complete model version"):
        challenger_version("full-2", task_uri=task_uri)
    with pytest.raises(PromotionRefused, match="has no finished run"):
        challenger_version("candidate", task_uri=task_uri)


def test_only_the_service_of_the_task_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"topics": None, "intents": None}
    removed: list[str] = []
    monkeypatch.setattr(serve_client, "serve_applications", lambda: served)
    monkeypatch.setattr(serving, "undeploy", removed.append)
    stop_service("s3://models/topics")
    assert removed == ["topics"]
    with pytest.raises(DeployError, match="intents, topics"):
        stop_service("s3://models/other")
    assert removed == ["topics"]
