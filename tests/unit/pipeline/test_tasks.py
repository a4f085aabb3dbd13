"""Classification and chat tasks: labels, baselines, training rows and temperature."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.models.base_model import BaseModelRecord
from tailorbird.models.errors import ModelError
from tailorbird.models.pretrained import dtype_name, inference_dtype
from tailorbird.pipeline.inputs import StagedBase
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.tasks import ChatTask, ClassificationTask
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import PinnedEncoder, read_artifact_config
from tailorbird.storage.node_cache import sha256_files
from tests import small_chat, small_encoder
from tests.build import pairs
from tests.separable import separable_rows
from tests.unit.pipeline.contexts import context_of, recipe_at, run_locally, splits_of
from training.chat_task import ChatTrainingTask
from training.classification_task import ClassificationTrainingTask


def chat_rows(name: str, letters: str) -> Rows:
    return pairs([(f"{name} {letter}", "yes") for letter in letters], chat=True)


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedEncoder:
    """An encoder for retrieval; its similarities have a fixed weight."""
    monkeypatch.setattr("tailorbird.evaluation.baselines.chat.EMBEDDING_WEIGHTS", (0.5,))
    return small_encoder.save(tmp_path / "encoder")


def record_of(pinned: PinnedEncoder, **more: str) -> BaseModelRecord:
    return BaseModelRecord(pinned.uri, pinned.uri, sha256_files(pinned.uri) | more)


@pytest.fixture
def chat(tmp_path: Path) -> RunContext:
    small_chat.save(tmp_path / "base")
    splits = Splits(
        chat_rows("train", "abcdef"), chat_rows("validation", "ghi"), chat_rows("test", "jkl")
    )
    sections = {
        "data": {"train": "s3://lake/x", "system": "s", "max_new_tokens": 4},
        "evaluation": {"metric": "token_f1", "prompt_shots": 2, "prompt_draws": 2},
    }
    recipe = recipe_at(tmp_path, task="chat", **sections)
    return context_of(recipe, splits, base_model=(tmp_path / "base").as_uri())


def test_a_training_uses_all_rows(tmp_path: Path) -> None:
    whole = context_of(recipe_at(tmp_path), splits_of(num_train=80)).task.training_task()
    assert isinstance(whole, ClassificationTrainingTask)
    assert (len(whole.train), whole.classes) == (80, ("a", "b"))


def test_a_trained_classifier_stores_the_pooling_that_it_was_trained_with(tmp_path: Path) -> None:
    own = Pooling(mode="cls", normalize=True, prompt="query: ")
    context = context_of(recipe_at(tmp_path), splits_of())
    task = ClassificationTask(
        replace(context.inputs, base=StagedBase(context.inputs.base_model, pooling=own))
    )
    training_task = task.training_task()
    assert isinstance(training_task, ClassificationTrainingTask)
    assert training_task.pooling == own
    expected = {"own": Pooling(mode="cls", prompt="query: "), "mean": Pooling(prompt="query: ")}
    for choice, pooling in expected.items():
        trained = context.recipe.training.model_copy(update={"pooling": choice})
        task.make_loadable((tmp_path / choice).as_uri(), trained=trained, dtype="float32")
        assert read_artifact_config((tmp_path / choice).as_uri()).pooling == pooling


def test_artifacts_of_chat_baselines_store_their_prompting(
    chat: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_locally(monkeypatch)
    baselines = chat.task.fit_baselines()
    kinds = ["nearest", "zero_shot", "few_shot", "retrieved"]
    assert [baseline.kind for baseline in baselines if baseline.servable] == kinds
    configs = [read_artifact_config(baseline.uri or "") for baseline in baselines]
    assert [config.kind for config in configs] == kinds
    prompts = [config.prompting for config in configs if config.prompting]
    assert all(prompt.system == "s" for prompt in prompts)
    assert [len(prompt.shots) for prompt in prompts] == [0, 0, 4, 0]
    assert [prompt.retrieval is not None for prompt in prompts] == [True, False, False, True]
    assert [config.contains_training_text for config in configs] == [True, False, True, True]
    assert chat.task.fit_decision("anything") is None


def test_baselines_have_the_precision_of_the_worker_that_fitted_them(
    chat: RunContext, pinned: PinnedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver on a CPU without bf16 must not decide for workers on GPUs."""
    of_the_worker = torch.float32 if inference_dtype() == torch.bfloat16 else torch.bfloat16

    def run_on_other_hardware(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with monkeypatch.context() as patch:
                for module in ("tailorbird.models.pretrained", "tailorbird.models.loading"):
                    patch.setattr(f"{module}.inference_dtype", lambda: of_the_worker)
                return function(*args, **kwargs)

        return call

    monkeypatch.setattr("tailorbird.pipeline.inputs.run_remote", run_on_other_hardware)
    inputs = replace(chat.inputs, encoder=record_of(pinned))
    _, *generating = ChatTask(inputs).fit_baselines()  # the first is the nearest answer
    configs = [read_artifact_config(str(baseline.uri)) for baseline in generating]
    name = str(of_the_worker).removeprefix("torch.")
    assert [config.dtype for config in configs] == [name] * 3
    prompting = configs[-1].prompting
    assert prompting is not None
    assert prompting.retrieval is not None
    assert prompting.retrieval.encoder == pinned.model_copy(update={"dtype": name})


def test_an_encoder_for_retrieval_is_an_input_of_the_baselines(
    chat: RunContext, pinned: PinnedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_locally(monkeypatch)
    inputs = replace(chat.inputs, encoder=record_of(pinned))
    task = ChatTask(inputs)
    expected = pinned.model_copy(update={"dtype": dtype_name()})
    assert inputs.pinned_encoder == expected
    uris = {baseline.uri for baseline in task.fit_baselines()}
    changed = ChatTask(replace(inputs, encoder=record_of(pinned, **{"more.json": "0"})))
    with pytest.raises(ModelError, match="retrieval encoder"):
        changed.fit_baselines()
    assert uris.isdisjoint({baseline.uri for baseline in chat.task.fit_baselines()})


def test_stage_inputs_depend_on_rows_base_model_and_code(tmp_path: Path) -> None:
    inputs = context_of(recipe_at(tmp_path), splits_of()).inputs
    other = context_of(recipe_at(tmp_path), splits_of(num_train=10)).inputs
    changed = StagedBase(replace(inputs.base_model, files={"a": "b"}))
    of_inputs = [
        each.stage_inputs(ClassificationTrainingTask, seed=0)
        for each in (inputs, other, replace(inputs, base=changed))
    ]
    seeded = inputs.stage_inputs(ClassificationTrainingTask, seed=1)
    keys = [*of_inputs, seeded, inputs.stage_inputs(ChatTrainingTask, seed=0)]
    assert all(key not in keys[:index] for index, key in enumerate(keys))
    archive = replace(inputs.code, sha256="d" * 64)
    assert replace(inputs, code=archive).stage_inputs(ClassificationTrainingTask, seed=0) == keys[0]


def test_zero_shot_embeds_the_descriptions_if_they_are_better_than_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder knows none of the label names, and the words of their descriptions."""
    run_locally(monkeypatch)
    small_encoder.save(tmp_path / "base")
    codes = {"blue": "L1", "red": "L2"}
    parts = []
    for seed in range(3):
        rows = separable_rows(40, seed=seed)
        parts.append(replace(rows, labels=tuple(codes[label] for label in rows.labels)))

    def zero_shot(descriptions: dict[str, str]) -> Baseline:
        data = {"train": "s3://lake/x", "label_descriptions": descriptions}
        recipe = recipe_at(tmp_path, data=data)
        context = context_of(recipe, Splits(*parts), base_model=(tmp_path / "base").as_uri())
        return next(each for each in context.task.fit_baselines() if each.kind == "zero_shot")

    by_name = zero_shot({})
    described = zero_shot({"L1": "blue", "L2": "red"})
    assert by_name.note.startswith("label names")
    assert "descriptions" in described.note  # alone, or with the names if this is as good
    assert described.validation > by_name.validation
    assert described.uri != by_name.uri
