"""The policies allow what the code does with S3, and nothing else; a small evaluator decides like
IAM."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tailorbird.cli.app import app
from tailorbird.config.loader import load_recipe
from tailorbird.release.iam import Cluster, role_documents

ROOT = Path(__file__).parents[3]
RECIPE = str(ROOT / "recipes" / "icd10_demo.yaml")
URIS = (
    "name=my-task",
    "registry=s3://models/team",
    "data.train=s3://lake/rows/train",
    "data.test=null",
    "data.validation=null",
    "serving.api_keys=s3://secrets/keys.txt",
    "serving.request_log=s3://logs/requests",
)
PODS = Cluster("tailorbird-prod")


def documents(*overrides: str, cluster: Cluster = PODS) -> dict[str, Any]:
    return role_documents(load_recipe(RECIPE, overrides=(*URIS, *overrides)), cluster=cluster)


def allows(policy: dict[str, Any], request: str, *, prefix: str | None = None) -> bool:
    """Return True if IAM allows a request, an action on `bucket` or `bucket/key`; `prefix` is that
    of a list request."""
    action, path = request.split(" ")
    for statement in policy["Statement"]:
        resources = statement["Resource"]
        patterns = resources if isinstance(resources, list) else [resources]
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        listed = prefixes is None or (
            prefix is not None and any(matches(each, prefix) for each in prefixes)
        )
        if (
            f"s3:{action}" in statement["Action"]
            and any(matches(each, f"arn:aws:s3:::{path}") for each in patterns)
            and listed
        ):
            return True
    return False


def matches(pattern: str, text: str) -> bool:
    """Match like IAM: `*` and `?` are wildcards, and `${*}`, `${?}` and `${$}` the characters
    themselves."""
    parts = [
        re.escape(part[2]) if len(part) == 4 else {"*": ".*", "?": "."}.get(part, re.escape(part))
        for part in re.findall(r"\$\{[*?$]\}|.", pattern)
    ]
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def test_replicas_read_the_task_and_create_files_of_the_request_log_only() -> None:
    policy = documents()["serving-policy"]
    champion = "models/team/my-task/champion.json"
    assert allows(policy, f"GetObject {champion}")
    assert allows(policy, "GetObject models/team/_base/minilm/model.safetensors")
    assert allows(policy, "GetObject secrets/keys.txt")
    assert allows(policy, "PutObject logs/requests/day=2026-01-01/a.parquet")
    for request in (
        f"PutObject {champion}",
        f"DeleteObject {champion}",
        "GetObject models/team/my-task-2/champion.json",
        "GetObject lake/rows/train/part.parquet",
        "GetObject logs/requests/day=2026-01-01/a.parquet",
        "PutObject models/team/my-task/batches/a.json",
    ):
        assert not allows(policy, request), request
    for prefix in ("team/my-task", "team/my-task/versions/1/"):
        assert allows(policy, "ListBucket models", prefix=prefix)
    assert not allows(policy, "ListBucket models", prefix="team/other/")
    assert not allows(policy, "ListBucket models")  # HeadBucket, and a list of the bucket


def test_a_training_writes_its_task_and_the_shared_folders_and_reads_the_data() -> None:
    policy = documents()["training-policy"]
    for path in ("my-task/stages/a/b", "_base/minilm/model.safetensors", "_ledger/rows/0.parquet"):
        assert allows(policy, f"PutObject models/team/{path}")
        assert allows(policy, f"DeleteObject models/team/{path}")
    assert allows(policy, "GetObject lake/rows/train/part.parquet")
    assert allows(policy, "ListBucket lake", prefix="rows/train/")
    assert allows(policy, "GetObject logs/requests/day=2026-01-01/a.parquet")  # `watch`
    # HeadBucket, which pyarrow sends before it writes a checkpoint
    assert allows(policy, "ListBucket models")
    for request in (
        "DeleteObject logs/requests/day=2026-01-01/a.parquet",
        "PutObject lake/rows/train/part.parquet",
        "PutObject models/team/other/champion.json",
        "GetObject models/other-team/my-task/champion.json",
    ):
        assert not allows(policy, request), request


def test_a_release_writes_the_task_and_lists_only_below_its_prefix() -> None:
    policy = documents()["release-policy"]
    assert allows(policy, "PutObject models/team/my-task/champion.json")
    assert allows(policy, "GetObject lake/rows/train/part.parquet")  # for the parity gate
    assert allows(policy, "ListBucket models", prefix="team/my-task/runs/")
    for request in (
        "PutObject models/team/_ledger/rows/0.parquet",
        "PutObject models/team/_base/minilm/model.safetensors",
        "ListBucket models",
        "PutObject models/team/other/champion.json",
    ):
        assert not allows(policy, request), request


def test_a_wildcard_in_a_key_matches_only_itself() -> None:
    policy = documents("data.train=s3://lake/a*b?c$d")["training-policy"]
    assert allows(policy, "GetObject lake/a*b?c$d/part")
    assert not allows(policy, "GetObject lake/a-x-b-c$d/part")


def test_only_the_pods_of_one_service_account_and_namespace_may_use_a_role() -> None:
    irsa = Cluster(
        "tailorbird-prod", account_id="111122223333", oidc_provider="https://oidc.example.com/id/AB"
    )
    (statement,) = documents(cluster=irsa)["serving-trust"]["Statement"]
    assert statement["Principal"] == {
        "Federated": "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/id/AB"
    }
    assert statement["Condition"]["StringEquals"] == {
        "oidc.example.com/id/AB:sub": "system:serviceaccount:tailorbird-prod:serving",
        "oidc.example.com/id/AB:aud": "sts.amazonaws.com",
    }
    (statement,) = documents()["training-trust"]["Statement"]
    assert statement["Condition"]["StringEquals"] == {
        "aws:RequestTag/kubernetes-namespace": "tailorbird-prod",
        "aws:RequestTag/kubernetes-service-account": "training",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"account_id": "111122223333"}, "give both --account-id and --oidc-provider"),
        ({"account_id": "12", "oidc_provider": "x"}, "not the 12 digits"),
    ],
)
def test_an_incomplete_or_invalid_cluster_is_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster("tailorbird-prod", **changed)


def test_a_registry_on_a_disk_is_refused() -> None:
    with pytest.raises(ValueError, match="is not on S3"):
        documents("registry=file:///models")


def test_the_command_writes_one_file_per_document(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["iam", RECIPE, *URIS, "--output", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "new").iterdir()}
    assert written == documents()
