"""Run contexts on local folders, without S3 and Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.code_snapshot import CodeVersion
from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import clean
from tailorbird.data.rows import Splits, fingerprint
from tailorbird.data.sharding.loading import LoadedDataset
from tailorbird.data.suites.load import load_suites
from tailorbird.evaluation.report.preregistration import Preregistration
from tailorbird.evaluation.verdict.protocol import build_protocol
from tailorbird.models.base_model import BaseModelRecord
from tailorbird.pipeline import evaluate, inputs
from tailorbird.pipeline.inputs import RunInputs, StagedBase
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.tasks import task_of
from tailorbird.registry.test_set_ledger import TestSetAccess
from tests import build
from training.reports import TrainingResult

ACCESS = TestSetAccess(
    number=1,
    num_rows=40,
    num_seen=0,
    alpha_share=1.0,
    rows="5f",
    models=("c",),
    protocol="p",
    run="r",
    at="2026-01-01T00:00:00+00:00",
)
BASE = "s3://m/base"


def recipe_at(folder: Path, **sections: object) -> Recipe:
    """Return a recipe whose registry is a local folder, which a recipe file does not allow."""
    return build.recipe(**sections).model_copy(update={"registry": folder.as_uri()})


def splits_of(*, num_train: int = 8) -> Splits:
    """Return splits with rows of two classes."""
    splits = []
    for name, size in (("train", num_train), ("validation", 4), ("test", 4)):
        labels = ["ab"[index % 2] for index in range(size)]
        texts = [f"{name} row {index} of {label}" for index, label in enumerate(labels)]
        splits.append(build.rows(texts, labels))
    return Splits(*splits)


def context_of(recipe: Recipe, splits: Splits, *, base_model: str = BASE) -> RunContext:
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
        requested_at=ACCESS.at,
    )
    return RunContext(f"{recipe.task_uri}/runs/r", inputs, task_of(inputs), registered)


def registering(context: RunContext, **changes: object) -> RunContext:
    """Return the context with other values in its preregistration."""
    return replace(context, registered=context.registered.model_copy(update=changes))


def training_result(weights: str, score: float, **fields: Any) -> TrainingResult:
    columns: dict[str, Any] = {"epochs": 1, "rows_per_second": 9, "padding_share": 0}
    columns |= {"weights": weights, "score": score, "step_seconds": 1, "dtype": "float32"}
    return TrainingResult.model_validate(columns | fields)


def run_locally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Ray tasks of the pipeline in this process."""
    monkeypatch.setattr(inputs, "run_remote", lambda function, **_: function)


def evaluate_locally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate runs in this process."""
    run_locally(monkeypatch)
    # Loading the evidence validates its recipe, whose registry is a local folder here.
    monkeypatch.setattr("tailorbird.config.recipe.with_scheme", lambda uri, _: uri)
    # The ledger needs conditional writes, which a local folder does not support.
    monkeypatch.setattr(evaluate, "record_test_access", lambda *_, **__: ACCESS)
