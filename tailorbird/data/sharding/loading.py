"""Load the rows of a recipe into memory, or its training rows into shards on S3."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from pydantic import BaseModel

from tailorbird import storage
from tailorbird.config.data import MAX_ROWS_IN_MEMORY, DataConfig
from tailorbird.config.recipe import Recipe
from tailorbird.data.fingerprints import (
    Hashes,
    fingerprints,
    load_fingerprints,
    trained_fingerprints,
    user_texts,
)
from tailorbird.data.loader import read_splits, read_validation_and_test
from tailorbird.data.quality import (
    DataReport,
    clean,
    evaluated_rows,
    num_blank,
    rare_classes,
    require_known_labels,
    require_separate_keys,
    take_training_rows,
)
from tailorbird.data.rows import DataError, Rows, Splits, digest_of, fingerprint, rows_sha256
from tailorbird.data.sharding.shards import Shards, fingerprints_uri
from tailorbird.data.sharding.worker import (
    ShardingJob,
    ShardReport,
    ShardSpec,
    read_sample,
    shard_specs,
    write_shard_of,
)
from tailorbird.data.suites.load import load_suites
from tailorbird.data.task_data import DataTask, recipe_task
from tailorbird.data.tokenize import labels_of
from tailorbird.storage.stage_cache import cached_stage

MapTasks = Callable[
    [Callable[[ShardSpec], ShardReport], Sequence[ShardSpec]], Iterable[ShardReport]
]
"""Like the built-in `map`; may run on a cluster."""


@dataclass(frozen=True)
class LoadedDataset:
    """The checked rows of a recipe."""

    splits: Splits
    """If training rows are sharded, `train` is a random sample of about `MAX_ROWS_IN_MEMORY`
    with every class."""
    report: DataReport
    hashes: dict[str, str]  # sha256 of each split; for train, over all rows
    shards: Shards | None = None  # all training rows if they are sharded
    sample_sha256: str | None = None  # of the training rows in memory if they are a sample
    suites: Mapping[str, Rows] = field(default_factory=dict)  # of the gate `suites`, by name

    @property
    def num_train(self) -> int:
        return len(self.splits.train if self.shards is None else self.shards)

    def learned_rows(self, *, in_memory: bool) -> Hashes:
        """Return the fingerprints of the training and validation rows, from which the models of a
        run learn.

        `in_memory` omits the training rows that are only in shards, which the baselines do not
        learn from.
        """
        validation = fingerprints(user_texts(self.splits.validation))
        if in_memory or self.shards is None:
            return np.concatenate([validation, trained_fingerprints(self.splits.train)])
        uris = [
            fingerprints_uri(self.shards.uri, number) for number in range(len(self.shards.sizes))
        ]
        return np.concatenate([validation, *map(load_fingerprints, uris)])


class _ShardsStage(BaseModel):
    """Output of the stage that writes shards."""

    uri: str
    reports: tuple[ShardReport, ...]


def load_in_memory(recipe: Recipe) -> LoadedDataset | None:
    """Read and check the rows of a recipe; return None if train has more rows than
    `MAX_ROWS_IN_MEMORY`.

    Raises DataError like `quality.clean` and `load_suites`.
    """
    config = recipe.data
    task = recipe_task(recipe)
    if sum(spec.num_rows for spec in shard_specs(config)) > MAX_ROWS_IN_MEMORY:
        return None
    splits, report = clean(read_splits(config, task=task))
    require_known_labels(config.label_descriptions, train=splits.train)
    take_training_rows(
        splits.train, size=config.max_train_rows, seed=recipe.training.seed
    )  # raises if too few
    return LoadedDataset(
        splits, report, fingerprint(splits), suites=load_suites(recipe, train=splits.train)
    )


def load_sharded(
    recipe: Recipe,
    task: DataTask,
    *,
    base_model: str,
    inputs: Mapping[str, object],
    map_tasks: MapTasks = map,
) -> LoadedDataset:
    """Read and check the rows of a recipe, and tokenize the training rows into shards.

    The shards are the output of a stage of the recipe's task, cached by `inputs` and the state of
    the files. Memory is bounded: a task holds a few thousand rows, and this process holds the
    sample. As in `quality.clean`, copies of validation and test rows are not trained on. Raises
    DataError like `load_in_memory`, and if the recipe does not set validation and test.
    """
    config = recipe.data
    _require_shardable(config)
    specs = list(shard_specs(config))
    validation, test = read_validation_and_test(config, task=task)

    def compute(uri: str) -> _ShardsStage:
        keys = (*(validation.split_keys or ()), *(test.split_keys or ()))
        job = ShardingJob(
            config=config,
            task=task,
            base_model=base_model,
            uri=uri,
            sample_share=MAX_ROWS_IN_MEMORY / sum(spec.num_rows for spec in specs),
            evaluated=evaluated_rows(test, validation=validation),
            evaluation_keys=frozenset(keys),
        )
        reports = map_tasks(partial(write_shard_of, job=job), specs)
        return _ShardsStage(uri=uri, reports=tuple(reports))

    uris = dict.fromkeys(spec.uri for spec in specs)
    stage_inputs = {
        **inputs,
        "data": config.model_dump(mode="json"),
        "task": repr(task),
        "files": list(map(repr, storage.file_entries(list(uris)))),
        "validation": rows_sha256(validation),
        "test": rows_sha256(test),
    }
    stage = cached_stage(
        recipe.task_uri,
        "shards",
        output=_ShardsStage,
        inputs=stage_inputs,
        compute=compute,
        resumes=True,  # every process writes the same shards
    )
    if not sum(report.num_rows for report in stage.reports):
        raise DataError(
            "train has no rows after copies of rows in later splits were dropped; give more data"
        )
    train = read_sample(stage.uri, num_files=len(stage.reports))
    dataset = _with_shards(Splits(train=train, validation=validation, test=test), stage)
    require_known_labels(config.label_descriptions, train=dataset.splits.train)
    return replace(dataset, suites=load_suites(recipe, train=dataset.splits.train))


def _with_shards(evaluated: Splits, stage: _ShardsStage) -> LoadedDataset:
    """Check the splits with the sample as train, and compute the figures of train over all
    shards."""
    splits, sample_report = clean(evaluated)
    reports = stage.reports
    sizes = tuple(report.num_rows for report in reports)
    labels = Counter[str]()
    copies = Counter[str]()
    keys = {name: set(rows.split_keys or ()) for name, rows in splits.items()}
    keys["train"] = set()
    for shard in reports:
        labels.update(shard.labels)
        copies.update(shard.copies)
        keys["train"].update(shard.shared_keys)
    require_separate_keys(keys)
    num_empty = num_blank(evaluated.validation.texts) + num_blank(evaluated.test.texts)
    report = replace(
        sample_report,
        num_train=sum(sizes),
        num_in_memory=len(splits.train),
        num_classes=len(labels) or sample_report.num_classes,  # chat: answers in the sample
        train_copies_of_test=copies["test"],
        train_copies_of_validation=copies["validation"],
        near_copies=sample_report.near_copies + copies["near"],
        untrained_turns=copies["turns"],
        empty_texts=num_empty + sum(report.num_empty for report in reports),
        rare_classes=rare_classes(labels),
    )
    hashes = fingerprint(splits) | {"train": digest_of(report.sha256 for report in reports)}
    shards = Shards(stage.uri, sizes, labels_of(list(labels)))
    return LoadedDataset(
        splits, report, hashes, shards=shards, sample_sha256=rows_sha256(splits.train)
    )


def _require_shardable(config: DataConfig) -> None:
    reason = f"train has more than {MAX_ROWS_IN_MEMORY:,} rows and is streamed; "
    if config.validation is None or config.test is None:
        raise DataError(f"{reason}set data.validation and data.test")
    if config.max_train_rows is not None:
        raise DataError(f"{reason}remove data.max_train_rows, or name fewer files in data.train")
