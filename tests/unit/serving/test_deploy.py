"""What a deploy says to the version's own code, which may be older than this."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.code import PACKAGES, ship_code
from models.registry import Prompting
from recipes.schema import ServingSection, TrialSection
from serving.app import BuildArgs, deployment_options
from serving.deploy import DeployError, _build_args, _refuse_open_door, require_unchanged, task_of

ROOT = Path(__file__).parents[3]


def version(prompting: Prompting | None) -> Any:
    return SimpleNamespace(prompting=prompting)


def test_a_version_with_a_prompting_is_a_chat_version() -> None:
    assert task_of(version(None)) == "classification"
    assert task_of(version(Prompting(system=None, max_new_tokens=8))) == "chat"


def test_fields_that_were_left_alone_are_not_sent_so_that_code_without_them_takes_the_rest() -> None:
    section = ServingSection(max_replicas=2, max_texts=8)
    sent = _build_args(section, home="s3://models/a", task="classification")
    assert sent == {"home": "s3://models/a", "serving": {"max_replicas": 2, "max_texts": 8}}
    assert BuildArgs.model_validate(sent).serving == section
    assert BuildArgs.model_validate(_build_args(section, home="s3://models/a", task="chat")).task == "chat"


def test_a_trial_is_no_argument_of_the_application_so_that_another_share_restarts_nothing() -> None:
    trial = TrialSection(version="full-1", canary=0.1)
    sent = _build_args(ServingSection(trial=trial), home="s3://models/a", task="classification")
    assert sent == {"home": "s3://models/a", "serving": {}}


def test_a_change_of_the_trial_leaves_as_many_replicas_as_there_are() -> None:
    config = deployment_options(ServingSection(min_replicas=0, max_replicas=3), task="chat")["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (0, 3)
    assert config.initial_replicas is None  # to which Serve would go back at each change of `user_config`


@pytest.mark.parametrize(("task", "max_ongoing"), [("classification", 128), ("chat", 64 + 1024 + 256)])
def test_serve_hands_a_chat_replica_more_than_it_takes_so_that_it_can_say_so(task: str, max_ongoing: int) -> None:
    assert deployment_options(ServingSection(), task=task)["max_ongoing_requests"] == max_ongoing


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
        _refuse_open_door(instance)
        return
    with pytest.raises(DeployError, match=r"serving\.api_keys is not set: `tailorbird key NAME` makes a key"):
        _refuse_open_door(instance)


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
