"""`finetune` on real workers: it trains and exports, stops if training diverges, and replaces a
killed worker."""

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from ray.util import state as ray_state

from cluster.connection import connect
from cluster.event_queue import forward_events
from cluster.progress import NoteEvent, StepEvent
from cluster.remote import map_remote
from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.training import TrainingConfig
from tailorbird.data.loader import read_rows
from tailorbird.data.quality import take_training_rows
from tailorbird.data.rows import DataError
from tailorbird.data.tokenize import encode_texts, labels_of, load_tokenizer
from tailorbird.data.tokenized import TokenizedRows
from tailorbird.models.base_model import stage_base_model
from tailorbird.models.classifier import logits_rows
from tailorbird.models.loading import load_weights
from tailorbird.models.pretrained import load_encoder
from tailorbird.registry.kinds import Kind
from tailorbird.storage.node_cache import local_copy
from tests.integration.small import BASE_MODEL, REGISTRY, content
from tests.progress import ProgressRecorder
from tests.unit.training.test_chat_task import task_of
from tests.unit.training.test_tokenization import assert_equal, chat_task, classification_task
from training import tokenization
from training.classification_task import ClassificationTrainingTask, ClassifierRuntime
from training.reports import TrainingResult
from training.task import TrainingTask
from training.tokenization import with_tokenized_rows
from training.trainer import TrainingFailed, finetune

pytestmark = pytest.mark.usefixtures("connected")


def training_task(data: str, *, num_rows: int) -> ClassificationTrainingTask:
    config = DataConfig.model_validate(content("any", data)["data"])
    train = read_rows(*config.train_uris, config=config)
    train = take_training_rows(train, size=num_rows, seed=0)
    validation = read_rows(config.validation or "", config=config).take(range(60))
    return ClassificationTrainingTask(
        base_model=stage_base_model(parse_model_uri(BASE_MODEL), registry=REGISTRY).uri,
        train=train,
        validation=validation,
        classes=labels_of(train.labels),
        max_length=32,
    )


def validation_logits(
    trained: TrainingResult, task: ClassificationTrainingTask, *, method: Kind
) -> np.ndarray:
    """Return the exported weights' logits of the validation rows."""
    base = local_copy(task.base_model)
    tokenizer = load_tokenizer(base)
    model = load_weights(local_copy(trained.weights), encoder=load_encoder(base), kind=method)
    tokens = encode_texts(task.validation.texts, tokenizer=tokenizer, max_length=task.max_length)
    return logits_rows(model, tokens, pad_id=int(tokenizer.pad_token_id))


@pytest.mark.long
def test_the_exported_weights_load_and_have_the_reported_score(small_data: str) -> None:
    """tests/unit/training/test_ranks.py and the small run cover the other stages and methods."""
    task = training_task(small_data, num_rows=64)
    config = TrainingConfig(
        zero_stage=3, method="lora", epochs=1, batch_size=16, learning_rate=1e-3
    )
    recorder = ProgressRecorder()
    with connect(), forward_events(recorder) as events:
        uri = f"{REGISTRY}/training-{uuid.uuid4().hex}"
        trained = finetune(config, task=task, uri=uri, events=events)
    losses = [event.loss for event in recorder.of_kind(StepEvent)]
    assert losses
    assert np.isfinite(losses).all()
    names = {
        name.removeprefix(f"{trained.weights}/").split("/")[0]
        for name in storage.list_files(trained.weights)
    }
    assert names == {"head.safetensors", "adapter"}
    logits = validation_logits(trained, task, method="lora")
    assert np.isfinite(logits).all()
    assert np.ptp(logits, axis=0).max() > 0.01  # the head has learned; it started with zeros
    predictions = [task.classes[index] for index in logits.argmax(1)]
    accuracy = np.mean(np.array(predictions) == np.array(task.validation.labels))
    assert accuracy == pytest.approx(
        trained.score, abs=4 / len(task.validation)
    )  # bf16 there, fp32 here


@pytest.mark.long
@pytest.mark.parametrize("make", [classification_task, chat_task])
def test_rows_that_ray_tasks_tokenize_have_the_tokens_of_one_process(
    tmp_path: Path, make: Callable[[Path], TrainingTask]
) -> None:
    task = make(tmp_path)
    parallel = mock.patch.object(tokenization, "map_remote", wraps=map_remote)
    with connect(), parallel as in_parallel:
        tokenized = with_tokenized_rows(task, part_chars=8)
        assert in_parallel.call_count == (
            2 if make is classification_task else 1
        )  # its validation rows as well
        too_short = task_of(task.base_model, max_length=6)
        with pytest.raises(DataError, match="training conversations have no answer"):
            with_tokenized_rows(too_short, part_chars=8)
        assert in_parallel.call_count == (3 if make is classification_task else 2)
        expected = with_tokenized_rows(task)
    assert isinstance(tokenized.train, TokenizedRows)
    assert isinstance(expected.train, TokenizedRows)
    assert_equal(tokenized.train, expected.train)


@pytest.mark.long
def test_training_that_diverges_fails_without_a_retry_and_names_step_and_rows(
    small_data: str,
) -> None:
    task = training_task(small_data, num_rows=64)
    config = TrainingConfig(epochs=2, batch_size=16, learning_rate=1e37)
    recorder = ProgressRecorder()
    with (
        connect(),
        forward_events(recorder) as events,
        pytest.raises(TrainingFailed, match="diverged: the loss is nan in epoch 1"),
    ):
        finetune(config, task=task, uri=f"{REGISTRY}/training-{uuid.uuid4().hex}", events=events)
    assert [event.step for event in recorder.of_kind(StepEvent)] in ([], [1])  # nothing was retried


@pytest.mark.long
def test_a_gpu_with_too_little_memory_is_reported_with_the_remedy(small_data: str) -> None:
    class TooLarge(ClassificationTrainingTask):
        def load_runtime(self, *, attention_dropout: float | None = None) -> ClassifierRuntime:
            runtime = super().load_runtime(attention_dropout=attention_dropout)
            vars(runtime)["loss"] = out_of_memory
            return runtime

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 14.70 GiB. GPU 0 has a total capacity"
        )

    fields = vars(training_task(small_data, num_rows=64))
    # each micro-batch is one row
    config = TrainingConfig(batch_size=16, batch_tokens=1, max_failures=0)
    with connect(), pytest.raises(TrainingFailed, match=r"14\.70 GiB; set several of training"):
        finetune(config, task=TooLarge(**fields), uri=f"{REGISTRY}/training-{uuid.uuid4().hex}")


@pytest.mark.long
def test_a_training_whose_micro_batches_exceed_the_gpu_finishes_with_smaller_ones(
    small_data: str,
) -> None:
    class Large(ClassificationTrainingTask):
        def load_runtime(self, *, attention_dropout: float | None = None) -> ClassifierRuntime:
            runtime = super().load_runtime(attention_dropout=attention_dropout)
            vars(runtime)["loss"] = partial(loss_within, runtime, most=60)
            return runtime

    def loss_within(
        runtime: ClassifierRuntime, engine: Any, config: TrainingConfig, batch: Any, *, most: int
    ) -> torch.Tensor:
        if batch.num_tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.70 GiB")
        return ClassifierRuntime.loss(runtime, engine, config, batch)

    fields = vars(training_task(small_data, num_rows=64))
    recorder = ProgressRecorder()
    with connect(), forward_events(recorder) as events:
        trained = finetune(
            TrainingConfig(epochs=1, batch_size=32),
            task=Large(**fields),
            uri=f"{REGISTRY}/training-{uuid.uuid4().hex}",
            events=events,
        )
    assert trained.epochs == 1
    notes = [event.text for event in recorder.of_kind(NoteEvent)]
    assert notes
    assert all("training continues with training.batch_tokens: " in note for note in notes)


def worker_pid() -> int:
    """Return the process id of a worker of the training that runs on this stack."""
    alive: list[Any] = ray_state.list_actors(
        filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    )
    return int(alive[0].pid)
