"""A tiny task for the training loop: random tokens and an encoder with two layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import Rows
from tailorbird.data.tokenized import TokenizedRows, TokenLists
from tailorbird.models.pretrained import without_pooler
from tests.unit.models.tiny_bert import tiny_bert
from training import checkpoint
from training.classification_task import ClassificationTrainingTask, ClassifierRuntime
from training.engine.deepspeed_private import destroy_engine
from training.loop import Callbacks, OnSave, build_engine, train
from training.reports import EpochReport, Progress
from training.task import TaskRuntime

NUM_ROWS, NUM_CLASSES = 23, 3


def rows_of(num: int, *, first: int = 0) -> tuple[Rows, list[list[int]]]:
    """Return rows with random labels and their random tokens, the same at each call."""
    generator = np.random.default_rng(first)
    lengths = generator.integers(3, 12, size=num)
    tokens = [generator.integers(1, 50, size=length).tolist() for length in lengths]
    labels = generator.integers(0, NUM_CLASSES, size=num)
    names = tuple(str(number) for number in range(first, first + num))
    return Rows(names, names, tuple(str(label) for label in labels)), tokens


def small_runtime(*, dropout: float, hidden_size: int = 16) -> ClassifierRuntime:
    rows, tokens = rows_of(NUM_ROWS)
    tokenized = TokenizedRows.from_lists(
        rows.row_ids, TokenLists(tokens, labels=rows.labels), classes=("0", "1", "2")
    )
    return ClassifierRuntime(
        encoder=without_pooler(tiny_bert(width=hidden_size, dropout=dropout)),
        task=ClassificationTrainingTask(
            base_model="", train=rows, validation=rows, classes=("0", "1", "2"), max_length=12
        ),
        train=tokenized,
        validation=tokenized,
        pad_id=0,
    )


def reports_of(
    runtime: TaskRuntime, *, on_save: OnSave | None = None, **fields: Any
) -> list[EpochReport]:
    """Return the report of each epoch of a training."""
    reports: list[EpochReport] = []

    def on_epoch(report: EpochReport, _: Any) -> bool:
        reports.append(report)
        return True

    with trained(runtime, callbacks=Callbacks(on_epoch=on_epoch, on_save=on_save), **fields):
        return reports


@contextmanager
def trained(
    runtime: TaskRuntime, *, callbacks: Callbacks | None = None, **fields: Any
) -> Iterator[tuple[Any, TrainingConfig]]:
    """Train an engine, yield it with its config, and destroy it."""
    config = config_of(**fields)
    engine = build_engine(config, runtime)
    try:
        train(engine, config, runtime=runtime, callbacks=callbacks or Callbacks())
        yield engine, config
    finally:
        destroy_engine(engine)


def resumed(runtime: TaskRuntime, folder: Path, **fields: Any) -> tuple[Progress, EpochReport]:
    """Return the progress in a checkpoint, and the last report of the training that resumes it."""
    config = config_of(**fields)
    engine, progress = checkpoint.resume(config, runtime, uri=folder.as_uri())
    start = replace(progress)
    report = train(engine, config, runtime=runtime, progress=progress)
    destroy_engine(engine)
    return start, report


def exact(report: EpochReport) -> tuple[float, float, float]:
    """Return what is the same in an interrupted and an uninterrupted training."""
    return report.loss, report.score, report.padding_share


def config_of(**fields: Any) -> TrainingConfig:
    values = {
        "num_workers": 1,
        "zero_stage": 0,
        "batch_size": 8,
        "epochs": 3,
        "learning_rate": 1e-2,
    }
    return TrainingConfig.model_validate(values | fields)
