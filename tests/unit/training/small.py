"""A tiny task for the training loop: random tokens and an encoder with two layers."""

from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import Rows
from tailorbird.data.tokenized import TokenizedRows, TokenLists
from tailorbird.models.pretrained import without_pooler
from training.classification_task import ClassificationTrainingTask, ClassifierRuntime
from training.engine.deepspeed_private import destroy_engine
from training.loop import Callbacks, build_engine, train
from training.reports import EpochReport
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
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    rows, tokens = rows_of(NUM_ROWS)
    tokenized = TokenizedRows.from_lists(
        rows.row_ids, TokenLists(tokens, labels=rows.labels), classes=("0", "1", "2")
    )
    return ClassifierRuntime(
        encoder=without_pooler(BertModel(config)),
        task=ClassificationTrainingTask(
            base_model="", train=rows, validation=rows, classes=("0", "1", "2"), max_length=12
        ),
        train=tokenized,
        validation=tokenized,
        pad_id=0,
    )


def reports_of(runtime: TaskRuntime, **fields: Any) -> list[EpochReport]:
    """Return the report of each epoch of a training."""
    config, reports = config_of(**fields), []
    engine = build_engine(config, runtime)

    def on_epoch(report: EpochReport, _: Any) -> bool:
        reports.append(report)
        return True

    train(engine, config, runtime=runtime, callbacks=Callbacks(on_epoch=on_epoch))
    destroy_engine(engine)
    return reports


def config_of(**fields: Any) -> TrainingConfig:
    values = {
        "num_workers": 1,
        "zero_stage": 0,
        "batch_size": 8,
        "epochs": 3,
        "learning_rate": 1e-2,
    }
    return TrainingConfig.model_validate(values | fields)
