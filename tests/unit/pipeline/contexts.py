"""Run contexts on local folders, without S3 and Ray."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.code_snapshot import CodeVersion
from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import clean
from tailorbird.data.rows import Rows, Splits, fingerprint
from tailorbird.data.sharding.loading import LoadedDataset
from tailorbird.data.suites.load import load_suites
from tailorbird.evaluation.report.preregistration import Preregistration
from tailorbird.evaluation.verdict.protocol import build_protocol
from tailorbird.models.base_model import BaseModelRecord
from tailorbird.pipeline.inputs import RunInputs, StagedBase
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.tasks import task_of


def recipe_at(folder: Path, **sections: object) -> Recipe:
    """Return a recipe whose registry is a local folder, which a recipe file does not allow."""
    required = {
        "name": "task",
        "base_model": "s3://m/base",
        "data": {"train": "s3://lake/x"},
        "registry": "s3://m",
    }
    return Recipe.model_validate(required | sections).model_copy(
        update={"registry": folder.as_uri()}
    )


def rows_of(texts: list[str], labels: list[str], *, first: int = 0) -> Rows:
    return Rows(
        tuple(str(first + index) for index in range(len(texts))), tuple(texts), tuple(labels)
    )


def splits_of(*, num_train: int = 8) -> Splits:
    """Return splits with rows of two classes."""
    splits = []
    for name, size in (("train", num_train), ("validation", 4), ("test", 4)):
        texts = [f"{name} row {index} of {'ab'[index % 2]}" for index in range(size)]
        splits.append(rows_of(texts, ["ab"[index % 2] for index in range(size)]))
    return Splits(*splits)


def context_of(recipe: Recipe, splits: Splits, *, base_model: str = "s3://m/base") -> RunContext:
    """Return the context that `prepare` would return."""
    cleaned, report = clean(splits)
    suites = load_suites(recipe, train=cleaned.train)
    data = LoadedDataset(cleaned, report, fingerprint(cleaned), suites=suites)
    code = CodeVersion("c" * 64, f"{recipe.task_uri}/code/c.zip")
    base = StagedBase(BaseModelRecord(base_model, base_model, {}))
    inputs = RunInputs(recipe, data, bases=(base,), base=base, code=code)
    protocol = build_protocol(
        recipe.evaluation,
        serving=recipe.serving,
        test_sha256=data.hashes["test"],
        num_test_rows=len(cleaned.test),
    )
    registered = Preregistration(
        protocol=protocol,
        recipe=recipe,
        code=code.sha256,
        data=data.hashes,
        base_models=(inputs.base_model,),
        retrieval_encoder=None,
        champion=None,
        anchor=None,
        requested_by="me",
        requested_at="2026-01-01T00:00:00+00:00",
    )
    return RunContext(f"{recipe.task_uri}/runs/r", inputs, task_of(inputs), registered)


def registering(context: RunContext, **changes: object) -> RunContext:
    """Return the context with other values in its preregistration."""
    return replace(context, registered=context.registered.model_copy(update=changes))


def run_locally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Ray tasks of the pipeline in this process."""
    monkeypatch.setattr("tailorbird.pipeline.inputs.run_remote", lambda function, **_: function)
