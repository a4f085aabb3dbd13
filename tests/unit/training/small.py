"""A tiny task for the training loop: random tokens on an encoder of two layers."""

from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from data.read import Rows
from models.load import without_pooler
from recipes.schema import TrainingSection
from training.classification import ClassifierMaterial
from training.loop import EpochReport, new_engine, train
from training.material import Material, TrainingTask
from training.zero import stop_engine

NUM_ROWS, NUM_CLASSES = 23, 3


def small_material(*, dropout: float) -> ClassifierMaterial:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 12, size=NUM_ROWS)
    tokens = [generator.integers(1, 50, size=length).tolist() for length in lengths]
    labels = generator.integers(0, NUM_CLASSES, size=NUM_ROWS)
    names = tuple(str(number) for number in range(NUM_ROWS))
    rows = Rows(names, names, tuple(str(label) for label in labels))
    return ClassifierMaterial(
        encoder=without_pooler(BertModel(config)),
        task=TrainingTask("", train=rows, validation=rows, classes=("0", "1", "2"), max_length=12),
        train_tokens=tokens,
        train_labels=labels,
        train_auxiliary=None,
        validation_tokens=tokens,
        validation_labels=labels,
        pad_id=0,
    )


def reports_of(material: Material, **fields: Any) -> list[EpochReport]:
    """What a training says after each epoch."""
    section, reports = section_of(**fields), []
    engine = new_engine(section, material)

    def on_epoch(report: EpochReport, _: Any) -> bool:
        reports.append(report)
        return True

    train(engine, section, material=material, on_step=lambda _: None, on_epoch=on_epoch)
    stop_engine(engine)
    return reports


def section_of(**fields: Any) -> TrainingSection:
    values = {"num_workers": 1, "zero_stage": 0, "batch_size": 8, "epochs": 3, "learning_rate": 1e-2}
    return TrainingSection.model_validate(values | fields)
