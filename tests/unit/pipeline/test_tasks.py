"""Classification and chat tasks: labels, baselines, training rows and temperature."""

from dataclasses import replace
from pathlib import Path

import pytest

from tailorbird.data.rows import Rows, Splits
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.tasks import ChatTask, ClassificationTask
from tailorbird.registry.versions import read_artifact_config
from tests import small_chat
from tests.unit.pipeline.contexts import context_of, recipe_at, run_locally, splits_of
from training.chat_task import ChatTrainingTask
from training.classification_task import ClassificationTrainingTask


def chat_rows(name: str, letters: str) -> Rows:
    turns = tuple((("user", letter),) for letter in letters)
    ids = tuple(str(index) for index in range(len(letters)))
    return Rows(ids, tuple(f"{name} {letter}" for letter in letters), ("yes",) * len(letters), conversations=turns)


@pytest.fixture
def chat(tmp_path: Path) -> RunContext:
    small_chat.save(tmp_path / "base")
    splits = Splits(chat_rows("train", "abcdef"), chat_rows("validation", "ghi"), chat_rows("test", "jkl"))
    sections = {
        "data": {"train": "s3://lake/x", "system": "s", "max_new_tokens": 4},
        "evaluation": {"metric": "token_f1", "prompt_shots": 2, "prompt_draws": 2},
    }
    recipe = recipe_at(tmp_path, task="chat", **sections)
    return context_of(recipe, splits, base_model=(tmp_path / "base").as_uri())


def test_the_recipe_determines_the_task(tmp_path: Path, chat: RunContext) -> None:
    classification = context_of(recipe_at(tmp_path), splits_of()).task
    assert isinstance(classification, ClassificationTask)
    assert isinstance(chat.task, ChatTask)
    assert (classification.classes, chat.task.classes) == (("a", "b"), ())
    assert classification.num_cost_rows > chat.task.num_cost_rows


def test_a_training_uses_all_rows_or_a_random_sample(tmp_path: Path, chat: RunContext) -> None:
    task = context_of(recipe_at(tmp_path), splits_of(num_train=80)).task
    whole, part = task.training_task(), task.training_task(num_train_rows=20)
    assert isinstance(whole, ClassificationTrainingTask)
    assert (len(whole.train), len(part.train), whole.classes) == (80, 20, ("a", "b"))
    chat_task = chat.task.training_task()
    assert isinstance(chat_task, ChatTrainingTask)
    assert (chat_task.metric, chat_task.prompting.system, len(chat_task.validation)) == ("token_f1", "s", 3)


def test_artifacts_of_chat_baselines_store_their_prompting(chat: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    run_locally(monkeypatch)
    baselines = chat.task.fit_baselines()
    kinds = ["nearest", "zero_shot", "few_shot", "retrieved"]
    assert [(baseline.kind, baseline.servable) for baseline in baselines] == [(kind, True) for kind in kinds]
    configs = [read_artifact_config(baseline.uri or "") for baseline in baselines]
    assert [config.kind for config in configs] == kinds
    prompts = [config.prompting for config in configs if config.prompting]
    assert all(prompt.system == "s" for prompt in prompts)
    assert [len(prompt.shots) for prompt in prompts] == [0, 0, 4, 0]
    assert [prompt.retrieval is not None for prompt in prompts] == [True, False, False, True]
    assert [config.contains_training_text for config in configs] == [True, False, True, True]
    assert chat.task.fit_temperature("anything") is None


def test_stage_inputs_depend_on_rows_base_model_and_code(tmp_path: Path) -> None:
    inputs = context_of(recipe_at(tmp_path), splits_of()).inputs
    other = context_of(recipe_at(tmp_path), splits_of(num_train=10)).inputs
    keys = [
        inputs.stage_inputs(ClassificationTrainingTask, seed=0),
        inputs.stage_inputs(ClassificationTrainingTask, seed=1),
        inputs.stage_inputs(ChatTrainingTask, seed=0),
        other.stage_inputs(ClassificationTrainingTask, seed=0),
        replace(inputs, base_model=replace(inputs.base_model, files={"a": "b"})).stage_inputs(
            ClassificationTrainingTask, seed=0
        ),
    ]
    assert all(key not in keys[:index] for index, key in enumerate(keys))
    archive = replace(inputs.code, sha256="d" * 64)
    assert replace(inputs, code=archive).stage_inputs(ClassificationTrainingTask, seed=0) == keys[0]
