"""What a deploy says to the version's own code, which may be older than this."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from cluster.code_snapshot import PACKAGES, ship_code
from serving.app import BuildArgs
from serving.autoscaling import deployment_options
from serving.deploy import rollout, serve_client
from serving.deploy.application import _build_args, application_of, task_of
from serving.deploy.rollout import require_unchanged
from serving.deploy.serve_client import DeployError, OverwrittenError, ChallengerError, require_private_or_keys
from tailorbird.config.serving import ChallengerConfig, ServingConfig
from tailorbird.registry import versions
from tailorbird.registry.versions import Prompting

ROOT = Path(__file__).parents[4]


def version(prompting: Prompting | None) -> Any:
    return SimpleNamespace(prompting=prompting)


def test_a_version_with_a_prompting_is_a_chat_version() -> None:
    assert task_of(version(None)) == "classification"
    assert task_of(version(Prompting(system=None, max_new_tokens=8))) == "chat"


def test_fields_that_were_left_alone_are_not_sent_so_that_code_without_them_takes_the_rest() -> None:
    config = ServingConfig(max_replicas=2, max_texts=8)
    sent = _build_args(config, task_uri="s3://models/a", task="classification")
    assert sent == {"task_uri": "s3://models/a", "serving": {"max_replicas": 2, "max_texts": 8}}
    assert BuildArgs.model_validate(sent).serving == config
    assert BuildArgs.model_validate(_build_args(config, task_uri="s3://models/a", task="chat")).task == "chat"


def test_a_trial_is_no_argument_of_the_application_so_that_another_share_restarts_nothing() -> None:
    trial = ChallengerConfig(version="full-1", canary=0.1)
    sent = _build_args(ServingConfig(challenger=trial), task_uri="s3://models/a", task="classification")
    assert sent == {"task_uri": "s3://models/a", "serving": {}}


def test_a_change_of_the_trial_leaves_as_many_replicas_as_there_are() -> None:
    config = deployment_options(ServingConfig(min_replicas=0, max_replicas=3), task="chat")["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (0, 3)
    assert config.initial_replicas is None  # to which Serve would go back at each change of `user_config`


@pytest.mark.parametrize(("task", "max_ongoing"), [("classification", 128), ("chat", 64 + 1024 + 256)])
def test_serve_hands_a_chat_replica_more_than_it_takes_so_that_it_can_say_so(task: str, max_ongoing: int) -> None:
    assert deployment_options(ServingConfig(), task=task)["max_ongoing_requests"] == max_ongoing


@pytest.mark.parametrize(
    ("url", "listens", "open_door"),
    [
        ("http://127.0.0.1:8000", None, False),
        ("http://127.0.0.1:8000", "127.0.0.1", False),
        ("http://localhost:8000", "127.0.0.1", False),
        ("http://127.0.0.1:8000", "0.0.0.0", True),
        ("http://127.0.0.1:8000", "", True),
        ("http://10.0.0.5:8000", None, True),
        ("http://serve.example:8000", "0.0.0.0", True),
    ],
)
def test_without_keys_nothing_is_deployed_where_other_machines_may_ask(
    monkeypatch: pytest.MonkeyPatch, url: str, listens: str | None, open_door: bool
) -> None:
    monkeypatch.setenv("TAILORBIRD_SERVE_URL", url)
    told = {"http_options": {"host": listens} if listens else {"port": 8000}}  # of its default Serve does not tell
    instance: dict[str, Any] = {"applications": {}} | ({} if listens is None else told)
    if not open_door:
        require_private_or_keys(instance)
        return
    with pytest.raises(DeployError, match=r"serving\.api_keys is not set: `tailorbird key NAME` makes a key"):
        require_private_or_keys(instance)


def test_code_that_was_changed_under_its_name_is_not_deployed(tmp_path: Path) -> None:
    ours = ship_code((tmp_path / "ours").as_uri(), ROOT).uri
    require_unchanged(ours)
    changed = tmp_path / "project"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, changed / name, ignore=shutil.ignore_patterns("__pycache__"))
    (changed / "serving" / "app.py").write_text("print('theirs')\n")
    theirs = ship_code((tmp_path / "theirs").as_uri(), changed).uri
    require_unchanged(theirs)
    shutil.copy(theirs.removeprefix("file://"), ours.removeprefix("file://"))
    with pytest.raises(DeployError, match=r"was changed: its files give the sha256 [0-9a-f]{64}; find out who may"):
        require_unchanged(ours)
    Path(ours.removeprefix("file://")).write_bytes(b"no zip")
    with pytest.raises(DeployError, match="cannot be served: not a zip that can be read"):
        require_unchanged(ours)


class FakeServe:
    """Serve's dashboard, which does at once what it is told; a test may let somebody else put something between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.applications: dict[str, Any] = {}
        self.after_put: list[Callable[[], None]] = []
        """What somebody else does after each of the next changes."""
        monkeypatch.setattr(serve_client, "request_dashboard", self.answer)
        monkeypatch.setattr(rollout, "require_unchanged", lambda _code: None)
        monkeypatch.setattr(rollout, "_wait_ready", lambda *_args, **_options: {})

    def answer(self, method: str, _path: str, *, body: Any = None) -> Any:
        if method == "PUT":
            self.applications = {one["name"]: one for one in body["applications"]}
            if self.after_put:
                self.after_put.pop(0)()
        told = {
            name: {"deployed_app_config": one, "route_prefix": one["route_prefix"], "status": "RUNNING"}
            for name, one in self.applications.items()
        }
        return SimpleNamespace(status_code=200, text="", json=lambda: {"applications": told})

    def config(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.applications[name]["deployments"][0]["user_config"]
        return found


def registered(name: str, *, code: str = "s3://models/code/a.zip", **fields: Any) -> Any:
    return SimpleNamespace(
        version=name, uri=f"s3://models/t/versions/{name}", digest=f"d-{name}", code=code, prompting=None,
        exported_from=None, **fields,
    )  # fmt: skip


def two_tasks(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    """A Serve with the tasks `t` and `other`, whose champions are called full-1."""
    serve = FakeServe(monkeypatch)
    monkeypatch.setattr(versions, "over_same_base", lambda *_args, **_options: [])
    for name in ("t", "other"):
        told = application_of(ServingConfig(), task_uri=f"s3://models/{name}", version=registered("full-1"))
        serve.applications[name] = told | {"route_prefix": f"/{name}"}
    return serve


def moved(name: str) -> None:
    rollout.switch_version(f"s3://models/{name}", version=registered("full-2"), pretrained=None, verdict=None)


def test_a_change_of_another_task_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = two_tasks(monkeypatch)
    monkeypatch.setattr(rollout, "require_unchanged", lambda _code: moved("other"))  # a read of S3, and what it takes
    rollout.switch_version(
        "s3://models/t", version=registered("full-2", code="s3://models/code/b.zip"), pretrained=None, verdict=None
    )
    assert {serve.config(name)["digest"] for name in ("t", "other")} == {"d-full-2"}


def test_what_somebody_puts_back_who_changes_another_task_is_put_again(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = two_tasks(monkeypatch)
    former = serve.applications["t"]
    stale = [lambda: serve.applications.update(t=former), lambda: serve.applications.update(t=former)]
    serve.after_put = list(stale)
    moved("t")
    assert (serve.config("t")["digest"], serve.after_put) == ("d-full-2", [])
    serve.applications["t"] = former
    serve.after_put = [stale[0]] * serve_client.PUT_ATTEMPTS
    with pytest.raises(DeployError, match="t was put back 5 times by who changes other applications"):
        moved("t")


def test_what_somebody_else_makes_of_the_same_task_is_left_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = two_tasks(monkeypatch)
    theirs = application_of(ServingConfig(), task_uri="s3://models/t", version=registered("full-3"))
    serve.after_put = [lambda: serve.applications.update(t=theirs)]
    with pytest.raises(OverwrittenError, match="somebody else changed or removed t meanwhile"):
        moved("t")
    assert serve.config("t")["digest"] == "d-full-3"


TRIED = ServingConfig(challenger=ChallengerConfig(version="full-2", canary=0.1))


def test_a_version_by_other_code_is_not_tried_in_the_champions_replicas() -> None:
    champion = registered("full-1")
    told = application_of(TRIED, task_uri="s3://models/t", version=champion, trial=registered("full-2"))
    assert told["deployments"][0]["user_config"]["trial"]["digest"] == "d-full-2"
    with pytest.raises(ChallengerError, match=r"full-2 was made by other code .*promote this one"):
        application_of(
            TRIED, task_uri="s3://models/t", version=champion, trial=registered("full-2", code="s3://models/code/b.zip")
        )


def test_the_former_champion_answers_beside_the_new_one_where_both_are_over_one_base_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve, asked = FakeServe(monkeypatch), []
    former, other, version = (registered(name) for name in ("lora-1", "lora-2", "lora-3"))

    def over_same_base(version: Any, *, task_uri: str, most: int) -> list[Any]:
        asked.append((version.version, task_uri, most))
        return [former, other]

    monkeypatch.setattr(versions, "over_same_base", over_same_base)
    told = application_of(ServingConfig(versions=3), task_uri="s3://models/t", version=former, others=[other])
    serve.applications["t"] = told
    rollout.switch_version("s3://models/t", version=version, pretrained=None, verdict=None)
    assert asked == [("lora-3", "s3://models/t", 3)]
    assert {name: one["digest"] for name, one in serve.config("t")["beside"].items()} == {
        "lora-1": "d-lora-1",
        "lora-2": "d-lora-2",
    }


@pytest.mark.parametrize(
    ("name", "code", "goes_on"),
    [("full-3", "a", True), ("full-3", "b", False), ("full-2", "a", False)],
)
def test_a_trial_ends_with_a_champion_of_other_code_and_where_it_is_the_champion(
    monkeypatch: pytest.MonkeyPatch, name: str, code: str, goes_on: bool
) -> None:
    serve = FakeServe(monkeypatch)
    monkeypatch.setattr(versions, "over_same_base", lambda *_args, **_options: [])
    told = application_of(TRIED, task_uri="s3://models/t", version=registered("full-1"), trial=registered("full-2"))
    serve.applications["t"] = told
    rollout.switch_version(
        "s3://models/t", version=registered(name, code=f"s3://models/code/{code}.zip"), pretrained=None, verdict=None
    )
    assert serve.config("t")["digest"] == f"d-{name}"
    assert ("trial" in serve.config("t")) == goes_on


@pytest.mark.parametrize(("num_gpus", "bundle"), [(1, {"CPU": 2, "GPU": 1}), (0, {"CPU": 2})])
def test_vllms_servers_share_what_their_replica_holds_and_a_gpu_is_theirs(
    num_gpus: Literal[0, 1], bundle: dict[str, float]
) -> None:
    config = ServingConfig(engine="vllm", cpus_per_replica=2, gpus_per_replica=num_gpus)
    options = deployment_options(config, task="chat")
    assert options["placement_group_bundles"] == [bundle]
    assert (options["ray_actor_options"]["num_cpus"], options["ray_actor_options"]["num_gpus"]) == (2, 0)
    own = deployment_options(config.model_copy(update={"engine": "transformers"}), task="chat")
    assert "placement_group_bundles" not in own
    assert own["ray_actor_options"]["num_gpus"] == num_gpus
