"""Fit models without fine-tuning on a part of the rows, in this process and in about a minute, and
measure them."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.copies import documents
from tailorbird.data.quality import take_training_rows
from tailorbird.data.rows import Rows, Splits
from tailorbird.data.splits import subsample
from tailorbird.data.tokenize import label_indices, labels_of
from tailorbird.evaluation.baselines.chat import score_nearest
from tailorbird.evaluation.baselines.classification import (
    BaselineResults,
    bag_data,
    fit_bag,
    fit_baselines,
    store_baselines,
    text_embedder,
)
from tailorbird.evaluation.baselines.linear_solver import IntArray
from tailorbird.evaluation.gates.cost import ServingUsage
from tailorbird.evaluation.inference.serving_cost import measure_serving
from tailorbird.evaluation.statistics.learning_curve import (
    MIN_SIZES,
    LearningCurve,
    curve_sizes,
    fit_curve,
)
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.versions import VersionConfig, now

MAX_TRAIN_ROWS = 5_000
MAX_VALIDATION_ROWS = 500
MIN_VALIDATION_ROWS = 100
EMBEDDING_S = 20.0  # for the validation rows, and again for the training rows
TIMED_ROWS = 16  # embedded first, to choose the number of validation rows
COST_ROWS = 32
BAG = "bag_of_words"
ENCODER = "probe"  # has the serving cost of every classifier with one encoder and a linear head
NEAREST = "nearest"


@dataclass(frozen=True)
class CheapModels:
    """Models without fine-tuning, measured on N validation rows."""

    num_train: int  # rows that they learned from
    num_validation: int
    num_units: int  # documents of the validation rows
    scores: Mapping[str, float]  # by kind, in the recipe's metric
    curve_of: str  # kind of the model of `curve`
    curve: LearningCurve | None  # None if the training rows are too few
    decisions: Mapping[str, IntArray] = field(default_factory=dict)
    """(classification only) Class index of each validation row [N] by kind."""
    truth: IntArray | None = None
    usage: Mapping[str, ServingUsage] = field(default_factory=dict)
    """(classification only) Cost of serving on this machine's CPU, of `BAG` and `ENCODER`."""


def measure_cheap_models(recipe: Recipe, splits: Splits, *, base_model: str) -> CheapModels:
    """Fit the baselines that need no minutes: all of a classifier, and `nearest` for chat.

    `base_model` is the URI of the staged base model. Raises ValueError like `fit_baselines`.
    """
    size = max(MAX_TRAIN_ROWS, len(set(splits.train.class_labels)))
    train = take_training_rows(splits.train, size=size, seed=recipe.training.seed)
    if TASKS[recipe.task].has_classes:
        return _classifiers(recipe, train, validation=splits.validation, base_model=base_model)
    return _nearest(recipe, train, validation=splits.validation)


def _classifiers(recipe: Recipe, train: Rows, *, validation: Rows, base_model: str) -> CheapModels:
    config = recipe.evaluation
    seed = recipe.training.seed
    max_length = recipe.data.max_length
    classes = labels_of(train.labels)
    rows = _embedded_in_time(validation, base_model=base_model, max_length=max_length, seed=seed)
    results = fit_baselines(
        base_model,
        train=train,
        validation=rows,
        descriptions=recipe.data.label_descriptions,
        max_length=max_length,
        config=config,
        seed=seed,
        embedding_s=EMBEDDING_S,
    )
    scores = {}
    decisions = {}
    for fitted in results.fitted:
        scores[fitted.baseline.kind] = fitted.baseline.validation
        if fitted.decisions is not None:
            decisions[fitted.baseline.kind] = fitted.decisions

    def score_bag(part: Rows) -> float:
        data = bag_data(part, validation=rows, metric=config.metric)[1]
        return fit_bag(data, seed=seed).score

    return CheapModels(
        num_train=len(train),
        num_validation=len(rows),
        num_units=_num_units(rows),
        scores=scores,
        curve_of=BAG,
        curve=_curve(train, score=score_bag, at_all=scores[BAG], num_validation=len(rows)),
        decisions=decisions,
        truth=label_indices(rows.labels, classes=classes),
        usage=_usage(recipe, results, rows=rows, classes=classes, base_model=base_model),
    )


def _nearest(recipe: Recipe, train: Rows, *, validation: Rows) -> CheapModels:
    seed = recipe.training.seed
    rows = validation.take(subsample(len(validation), size=MAX_VALIDATION_ROWS, seed=seed))

    def score(part: Rows) -> float:
        index = build_index(part, seed=seed)
        return score_nearest(index, validation=rows, metric=recipe.evaluation.metric)

    at_all = score(train)
    return CheapModels(
        num_train=len(train),
        num_validation=len(rows),
        num_units=_num_units(rows),
        scores={NEAREST: at_all},
        curve_of=NEAREST,
        curve=_curve(train, score=score, at_all=at_all, num_validation=len(rows)),
    )


def _num_units(rows: Rows) -> int:
    return len(set(documents(rows) or rows.row_ids))


def _embedded_in_time(validation: Rows, *, base_model: str, max_length: int, seed: int) -> Rows:
    """Return random validation rows that this machine embeds in about `EMBEDDING_S`."""
    order = np.random.default_rng(seed).permutation(len(validation))
    timed = [validation.texts[row] for row in order[:TIMED_ROWS]]
    embed = text_embedder(base_model, max_length=max_length)
    embed(timed)  # the first pass is slower
    start = time.monotonic()
    embed(timed)
    row_s = (time.monotonic() - start) / len(timed)
    size = min(MAX_VALIDATION_ROWS, max(MIN_VALIDATION_ROWS, int(EMBEDDING_S / row_s)))
    return validation.take(np.sort(order[:size]))


def _curve(
    train: Rows, *, score: Callable[[Rows], float], at_all: float, num_validation: int
) -> LearningCurve | None:
    """Return the curve over nested random parts of the rows; `at_all` is the score of all."""
    num_classes = max(1, len(set(train.class_labels)))
    if len(train) < num_classes * 2 ** (MIN_SIZES - 1):
        return None
    sizes = curve_sizes(len(train), num_classes=num_classes)
    scores = [score(take_training_rows(train, size=size, seed=0)) for size in sizes[:-1]]
    return fit_curve(sizes, (*scores, at_all), num_validation=num_validation)


def _usage(
    recipe: Recipe,
    results: BaselineResults,
    *,
    rows: Rows,
    classes: tuple[str, ...],
    base_model: str,
) -> Mapping[str, ServingUsage]:
    """Return the cost of serving `BAG` and `ENCODER`, which are stored in a temporary folder."""
    config = VersionConfig(
        kind="zero_shot",
        classes=classes,
        base_model=base_model,
        max_length=recipe.data.max_length,
        dtype=results.dtype,
        code="",
        recipe_hash=digest(recipe),
        created_at=now(),
    )
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        uri = Path(folder).as_uri()
        store_baselines(uri, results, config=config)
        measured = measure_serving(
            {kind: f"{uri}/{kind}" for kind in (BAG, ENCODER)},
            rows=rows.take(range(min(len(rows), COST_ROWS))),
            batch_size=recipe.serving.batch_size(recipe.task),
        )
    return measured.serving
