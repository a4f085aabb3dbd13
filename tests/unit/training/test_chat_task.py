"""Training of a chat task in one process, with a tiny language model: losses, export, resumes and
rejected models."""

import itertools
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import DataError, Rows
from tailorbird.evaluation.inference.chat_answers import answer_rows
from tailorbird.models.attention import packed_attention
from tailorbird.models.errors import ModelError
from tailorbird.models.loading import load_chat_weights
from tailorbird.models.pretrained import cast_parameters
from tailorbird.registry.kinds import Kind
from tailorbird.registry.versions import Prompting
from tests import build
from tests.small_chat import language_model, model_of, save, tokenizer
from tests.unit.device_reads import DeviceReads
from tests.unit.models.attention.reference_attention import reference_varlen_attn
from tests.unit.training.small import config_of, exact, reports_of, resumed, trained
from training import chat_task, checkpoint
from training.chat_task import ChatRuntime, ChatTrainingTask
from training.dataset import sampled_rows
from training.engine.deepspeed_engine import compute_dtype
from training.engine.deepspeed_private import destroy_engine
from training.export import export_weights, exported_values
from training.loop import build_engine
from training.reports import Progress
from training.task import Diverged, check_trainable

NUM_ROWS = 22
PROMPTING = Prompting(system=None, max_new_tokens=8)


def rows_of(num: int = NUM_ROWS) -> Rows:
    """Return conversations whose answer repeats the prompt, with prompts of several lengths."""
    texts = ["abcdefgh"[index % 8] * (1 + index % 5) for index in range(num)]
    return build.rows(texts, chat=True)


def task_of(base_model: str = "", **fields: Any) -> ChatTrainingTask:
    values: dict[str, Any] = {
        "train": rows_of(),
        "validation": rows_of(8),
        "max_length": 64,
        "metric": "exact_match",
    }
    return ChatTrainingTask(base_model=base_model, prompting=PROMPTING, **values | fields)


def runtime_of() -> ChatRuntime:
    return ChatRuntime(language_model(), tokenizer(), task_of(), task_of().dataset(tokenizer()))


def test_a_chat_model_learns_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    num_epochs, score, epochs = 60, ChatRuntime.score, itertools.count(1)

    def score_first_and_last(*arguments: Any) -> float:  # generation takes most of an epoch's time
        return score(*arguments) if next(epochs) in (1, num_epochs) else 0.0

    monkeypatch.setattr(ChatRuntime, "score", score_first_and_last)
    reports = reports_of(runtime_of(), epochs=num_epochs, learning_rate=1e-2)
    assert reports[-1].loss < 0.2 < 1 < reports[0].loss
    assert (
        reports[-1].score > 0.8 > reports[0].score
    )  # exact match of generated answers on validation
    assert max(report.padding_share for report in reports) < 0.05


def write(engine: Any, config: TrainingConfig, *, runtime: ChatRuntime, folder: Path) -> None:
    """Write the weights without a comparison with the trained model."""
    runtime.write(
        exported_values(engine, config), model=engine.module, config=config, folder=folder
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parameters", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("stage", "method"), [(0, "lora"), (1, "lora"), (2, "lora"), (0, "full"), (2, "full")]
)
def test_the_validated_weights_are_those_of_the_exported_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    method: Kind,
    parameters: str,
    stored: torch.dtype,
) -> None:
    monkeypatch.setattr(ChatRuntime, "score", lambda *_: 0.0)  # generation takes most of the time
    # Rounding the base before an adapter is added, or adding a rounded adapter, changes some of the
    # rounded sums.
    runtime = runtime_of()
    fields: dict[str, Any] = {"zero_stage": stage, "method": method, "parameter_dtype": parameters}
    cast_parameters(runtime.lm, stored)
    base = [value.clone() for value in runtime.lm.parameters()]
    with trained(runtime, **fields, epochs=1, learning_rate=1e-3) as (engine, config):
        validated = dict(runtime.inference_model(engine, config).named_parameters())
        write(engine, config, runtime=runtime, folder=tmp_path)
    loaded = load_chat_weights(tmp_path, lm=deepcopy(runtime.lm).float(), kind=method)
    exported = dict(cast_parameters(loaded, compute_dtype(config)).named_parameters())
    torch.testing.assert_close(validated, exported, rtol=0, atol=0)
    assert all(map(torch.equal, runtime.lm.parameters(), base))


@pytest.mark.parametrize(
    "fields", [{"batch_tokens": 100}, {"gradient_checkpointing": True}], ids=str
)
def test_options_that_save_memory_do_not_change_the_loss(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatRuntime, "score", lambda *_: 0.0)
    plain = [report.loss for report in reports_of(runtime_of())]
    assert plain[-1] < plain[0]
    assert [report.loss for report in reports_of(runtime_of(), **fields)] == pytest.approx(
        plain, rel=0.01
    )


@pytest.mark.parametrize(
    "fields", [{}, {"zero_stage": 3, "gradient_checkpointing": True}, {"method": "lora"}], ids=str
)
def test_a_pass_does_not_wait_for_a_gpu_because_it_reads_no_value(fields: dict[str, Any]) -> None:
    runtime, config = runtime_of(), config_of(**fields)
    engine = build_engine(config, runtime)
    batch = runtime.collate(config, sampled_rows(runtime.train), np.array([0, 1]))
    for _ in range(3):  # at stage 3, DeepSpeed compares the order of the modules in the first steps
        with DeviceReads() as reads:
            engine.backward(runtime.loss(engine, config, batch))
        engine.step()
    destroy_engine(engine)
    assert reads.places == []


def test_a_training_killed_during_validation_repeats_no_step(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"method": "lora", "lora_dropout": 0.1, "epochs": 1, "zero_stage": 1}
    runtime = runtime_of()
    uninterrupted = reports_of(runtime, **fields)[-1]

    class Killed(Exception):
        pass

    def killed(*_: Any) -> float:
        raise Killed

    def save(progress: Progress, engine: Any) -> None:
        checkpoint.save(engine, folder=tmp_path, progress=progress)

    with mock.patch.object(ChatRuntime, "score", killed), pytest.raises(Killed):
        reports_of(runtime, on_save=save, **fields)
    progress, report = resumed(runtime, tmp_path, **fields)
    assert progress.step == 3
    assert exact(report) == exact(uninterrupted)


def test_weights_that_are_not_finite_raise_diverged_at_validation() -> None:
    with pytest.raises(Diverged, match="diverged in epoch 1: predictions are not finite"):
        reports_of(runtime_of(), epochs=1, learning_rate=1e39, batch_size=NUM_ROWS)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with flash attention, and with a reference of its kernel, because the real one needs a
    GPU."""
    monkeypatch.setattr(packed_attention, "_varlen_kernel", lambda: reference_varlen_attn)
    monkeypatch.setattr(chat_task, "choose_attention", lambda *_, **__: "flash")


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(("stage", "method"), [(0, "full"), (3, "full"), (1, "lora"), (3, "lora")])
def test_flash_attention_gives_the_losses_of_the_dense_mask_without_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, method: str
) -> None:
    monkeypatch.setattr(ChatRuntime, "score", lambda *_: 0.0)
    fields: dict[str, Any] = {
        "zero_stage": stage,
        "method": method,
        "lora_dropout": 0.0,
        "epochs": 2,
    }
    runtime = runtime_of()
    reports = reports_of(runtime, **fields)
    assert [(report.attention, report.padding_share) for report in reports] == [("flash", 0.0)] * 2
    with trained(runtime, **fields) as (engine, config):  # the export compares dense attention
        export_weights(engine, config, runtime=runtime, folder=tmp_path)
    monkeypatch.setattr(chat_task, "choose_attention", lambda *_, **__: "dense")
    dense = reports_of(runtime, **fields)
    assert dense[0].attention == "dense"
    assert [report.loss for report in reports] == pytest.approx(
        [report.loss for report in dense], rel=0.01
    )


def test_conversations_without_room_for_an_answer_are_rejected(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(
        DataError, match=r"12 training conversations have no answer.*\(rows 2, 3, 4, 7, 8\)"
    ):
        check_trainable(task_of(tmp_path.as_uri(), max_length=6))


@pytest.mark.parametrize(
    ("kind", "fields", "separates"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, False),
        ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16}, False),
        ("bloom", {}, False),  # accepts no four-dimensional attention mask
        ("gemma2", {"final_logit_softcapping": 0.5}, True),
        ("granite", {"logits_scaling": 8.0}, True),
        ("gemma3_text", {}, True),
    ],
)
def test_a_model_that_mixes_packed_conversations_is_rejected(
    tmp_path: Path, kind: str, fields: dict[str, Any], separates: bool
) -> None:
    save(tmp_path, model_of(kind, **fields))
    refused = pytest.raises(ModelError, match=f"of type {kind} cannot be trained for a chat task")
    with nullcontext() if separates else refused:
        check_trainable(task_of(tmp_path.as_uri()))


@pytest.mark.parametrize(
    ("stage", "dtype", "method"),
    [(0, torch.float32, "full"), (0, torch.bfloat16, "lora"), (3, torch.float32, "lora")],
)
def test_validation_gives_the_answers_of_the_exported_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, dtype: torch.dtype, method: Kind
) -> None:
    for module in ("loop", "engine.deepspeed_engine"):
        monkeypatch.setattr(f"training.{module}.inference_dtype", lambda: dtype)
    monkeypatch.setattr(ChatRuntime, "score", lambda *_: 0.0)
    runtime = runtime_of()
    with trained(runtime, epochs=8, zero_stage=stage, method=method) as (engine, config):
        answers = runtime.answers(engine, config, runtime.task.validation)
        write(engine, config, runtime=runtime, folder=tmp_path)
    exported = load_chat_weights(tmp_path, lm=deepcopy(runtime.lm), kind=method).to(dtype).eval()
    expected = answer_rows(
        exported, runtime.task.validation, tokenizer=tokenizer(), prompting=PROMPTING
    )
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    assert len({answer.text for answer in expected}) > 1
    for answer, reference in zip(answers, expected, strict=True):
        assert answer.confidence == pytest.approx(reference.confidence, abs=tolerance)
        assert answer.text == reference.text
