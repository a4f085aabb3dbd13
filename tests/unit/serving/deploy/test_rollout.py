"""Deploys to a Serve that other clients change at the same time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

from cluster.code_snapshot import ship_code
from serving.deploy import rollout, serve_client
from serving.deploy.application import AdditionalVersions, application_of
from serving.deploy.readiness import UNREACHABLE, ReplicaStatus, declared_details
from serving.deploy.rollout import require_unchanged, require_valid_keys
from serving.deploy.serve_client import DeployError, OverwrittenError, VersionRefusedError
from serving.deploy.serve_schema import ServeApplication
from serving.replica.config import ReplicaConfig
from tailorbird import PACKAGES
from tailorbird.config.serving import ChallengerConfig, ServingConfig
from tailorbird.registry.shared_base import selectable_versions
from tailorbird.registry.versions import ModelVersion
from tests.unit.serving.deploy.registered import registered

EXPERIMENT = ServingConfig(
    request_log="s3://logs/requests", challenger=ChallengerConfig(version="full-2", shadow=0.1)
)


def test_keys_with_a_mistake_are_not_deployed_unless_only_the_nodes_can_read_them(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"app {'0' * 64}\nother {'1' * 64} scopes=root\n")
    with pytest.raises(DeployError):
        require_valid_keys(keys.as_uri())
    keys.write_text(f"app {'0' * 64}\n")
    for source in (keys.as_uri(), (tmp_path / "absent").as_uri(), "env://NOT_SET_HERE"):
        require_valid_keys(source)


def test_code_that_differs_from_its_name_is_not_deployed(tmp_path: Path) -> None:
    def archive(folder: str, content: str) -> Path:
        root = tmp_path / folder
        for name in PACKAGES:
            (root / name).mkdir(parents=True)
            (root / name / "__init__.py").write_text(content)
        return Path(ship_code(f"{root.as_uri()}-shipped", root).uri.removeprefix("file://"))

    shipped = archive("a", "1\n")
    require_unchanged(shipped.as_uri())
    for content in (archive("b", "2\n").read_bytes(), b"no zip"):
        shipped.write_bytes(content)
        with pytest.raises(DeployError):
            require_unchanged(shipped.as_uri())


class FakeServe:
    """A fake of Serve's REST API that applies a PUT at once, and can simulate changes by another
    client."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TAILORBIRD_SERVE_URL", raising=False)
        self.applications: dict[str, ServeApplication] = {}
        self.after_put: list[Callable[[], None]] = []
        """Actions of another client, one after each of the next PUT requests."""
        monkeypatch.setattr(serve_client, "request_dashboard", self.answer)
        monkeypatch.setattr(rollout, "has_dashboard", lambda: True)
        monkeypatch.setattr(rollout, "require_unchanged", lambda _code: None)
        monkeypatch.setattr(
            rollout, "wait_ready", lambda application, **_: declared_details(application)
        )
        monkeypatch.setattr(rollout, "replica_status", lambda _url: UNREACHABLE)
        monkeypatch.setattr(rollout, "selectable_versions", lambda *_args, **_options: [])

    def declare(self, application: ServeApplication) -> None:
        self.applications[application.name] = application

    def answer(self, method: str, _path: str, *, body: Any = None) -> Any:
        if method == "PUT":
            applications = [
                ServeApplication.model_validate(declared) for declared in body["applications"]
            ]
            self.applications = {application.name: application for application in applications}
            if self.after_put:
                self.after_put.pop(0)()
        details = {
            name: {
                "deployed_app_config": declared.to_json(),
                "route_prefix": declared.route_prefix,
                "status": "RUNNING",
            }
            for name, declared in self.applications.items()
        }
        return SimpleNamespace(status_code=200, text="", json=lambda: {"applications": details})

    def config(self, name: str) -> ReplicaConfig:
        return ReplicaConfig.model_validate(self.applications[name].user_config)

    def champion(self, name: str) -> str:
        return self.config(name).champion.digest


def application(
    config: ServingConfig, name: str, *, task: str = "t", challenger: str | None = None
) -> ServeApplication:
    """Return the application of a task whose champion has this name."""
    additional = AdditionalVersions(challenger=registered(challenger) if challenger else None)
    return application_of(
        config,
        task_uri=f"s3://models/{task}",
        version=registered(name),
        additional=additional,
    )


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    """Return a fake Serve with the tasks `t` and `other`, whose champions are full-1."""
    serve = FakeServe(monkeypatch)
    for name in ("t", "other"):
        declared = application(ServingConfig(), "full-1", task=name)
        serve.declare(declared.model_copy(update={"route_prefix": f"/{name}"}))
    return serve


def switch(name: str, version: ModelVersion | None = None) -> None:
    version = version or registered("full-2")
    rollout.switch_version(f"s3://models/{name}", version=version, baseline=None, verdict=None)


def stage(name: str, version: ModelVersion) -> AbstractContextManager[str | None]:
    return rollout.staged(f"s3://models/{name}", version=version)


def test_a_concurrent_change_of_another_task_is_kept(
    serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # another client deploys during the read of S3
    monkeypatch.setattr(rollout, "require_unchanged", lambda _code: switch("other"))
    switch("t", registered("full-2", code="s3://models/code/b.zip"))
    assert {serve.champion(name) for name in ("t", "other")} == {"d-full-2"}


def test_an_application_that_another_client_overwrote_is_put_again(serve: FakeServe) -> None:
    previous = serve.applications["t"]
    serve.after_put = [lambda: serve.declare(previous)] * 2
    switch("t")
    assert (serve.champion("t"), serve.after_put) == ("d-full-2", [])
    serve.declare(previous)
    serve.after_put = [lambda: serve.declare(previous)] * serve_client.PUT_ATTEMPTS
    with pytest.raises(DeployError):
        switch("t")


def test_another_clients_change_of_the_same_task_is_kept_and_reported(
    serve: FakeServe,
) -> None:
    serve.after_put = [lambda: serve.declare(application(ServingConfig(), "full-3"))]
    with pytest.raises(OverwrittenError):
        switch("t")
    assert serve.champion("t") == "d-full-3"


def test_the_previous_champion_stays_selectable_if_both_have_the_same_base_model(
    serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [registered("lora-1"), registered("lora-2")]
    same_base = create_autospec(selectable_versions, return_value=versions)
    monkeypatch.setattr(rollout, "selectable_versions", same_base)
    serve.declare(application(ServingConfig(engine="vllm"), "lora-1"))
    version = registered("lora-3")
    switch("t", version)
    same_base.assert_called_once_with(version, task_uri="s3://models/t", shares_chat_base=True)
    digests = {name: other.digest for name, other in serve.config("t").selectable.items()}
    assert digests == {"lora-1": "d-lora-1", "lora-2": "d-lora-2"}


@pytest.mark.parametrize(("code", "continues"), [("a", True), ("b", False)])
def test_an_experiment_ends_if_the_code_changes(
    serve: FakeServe, code: str, continues: bool
) -> None:
    serve.declare(application(EXPERIMENT, "full-1", challenger="full-2"))
    switch("t", registered("full-3", code=f"s3://models/code/{code}.zip"))
    assert serve.champion("t") == "d-full-3"
    assert (serve.config("t").challenger is not None) == continues


def test_a_staged_version_is_loaded_alongside_the_champion_and_stays_for_the_switch(
    serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registered("full-2")
    with pytest.raises(RuntimeError), stage("t", version):
        raise RuntimeError
    assert serve.config("t").selectable == {}
    with stage("t", version) as url:
        assert url == "http://127.0.0.1:8000/t"
        assert serve.champion("t") == "d-full-1"
        assert serve.config("t").selectable["full-2"].digest == "d-full-2"
    with pytest.raises(RuntimeError), stage("t", version):
        raise RuntimeError
    assert list(serve.config("t").selectable) == ["full-2"]  # it was served before the block
    with stage("unknown", version) as url:
        assert url is None
    monkeypatch.setattr(rollout, "has_dashboard", lambda: False)
    with stage("t", version) as url:
        assert url is None


def test_a_staged_version_that_cannot_be_loaded_is_refused(
    serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = ReplicaStatus(status="ready", absent={"full-2": "the version is damaged"})
    monkeypatch.setattr(rollout, "replica_status", lambda _url: status)
    with pytest.raises(VersionRefusedError), stage("t", registered("full-2")):
        raise AssertionError
    assert serve.config("t").selectable == {}


def test_a_version_is_staged_in_a_separate_application_if_its_code_or_its_need_of_a_gpu_differs(
    serve: FakeServe,
) -> None:
    with stage("t", registered("full-2", code="s3://models/code/b.zip")) as url:
        assert url == "http://127.0.0.1:8000/t_candidate"
        assert serve.champion("t_candidate") == "d-full-2"
        assert serve.applications["t_candidate"].code == "s3://models/code/b.zip"
        assert serve.applications["t_candidate"].max_replicas == 1
    assert sorted(serve.applications) == ["other", "t"]
    args = {"serving": {"gpus_per_replica": 1}}
    serve.applications["t"] = serve.applications["t"].model_copy(update={"args": args})
    switch("t", registered("endpoint-zero-shot-1"))
    assert serve.applications["t"].args == args | {"without_gpu": True}
    with stage("t", registered("full-2")):
        assert "without_gpu" not in serve.applications["t_candidate"].args
    switch("t", registered("full-2"))
    assert serve.applications["t"].args == args
