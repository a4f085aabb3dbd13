"""The estimate of a run, if its rates cannot be measured."""

from pathlib import Path

import pytest
import torch

from tailorbird.data.rows import Splits
from tailorbird.pipeline import estimate
from tailorbird.pipeline.estimate import estimate_run
from tests import small_chat
from tests.unit.pipeline.contexts import context_of, recipe_at, run_locally
from tests.unit.pipeline.test_tasks import chat_rows
from training.chat_task import ChatRuntime


def test_a_model_that_does_not_fit_on_one_gpu_has_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 110 GiB")

    run_locally(monkeypatch)
    monkeypatch.setattr(estimate, "num_groups_that_fit", lambda _: 1)  # reads the resources of a Ray cluster
    monkeypatch.setattr(ChatRuntime, "build", refuse)
    small_chat.save(tmp_path / "base")
    splits = Splits(chat_rows("train", "abcdef"), chat_rows("validation", "ghi"), chat_rows("test", "jkl"))
    recipe = recipe_at(tmp_path, task="chat", evaluation={"metric": "token_f1"})
    context = context_of(recipe, splits, base_model=(tmp_path / "base").as_uri())
    plan = estimate_run(context.inputs, context.task)
    assert plan.stages == ()
    assert plan.text == "the model and one micro-batch do not fit on one GPU, so no speed was measured"
