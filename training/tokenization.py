"""Tokenize the training and validation rows once, before the workers start, on all CPUs of the
cluster."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import ray

from cluster.remote import map_remote
from tailorbird.data.rows import Rows
from tailorbird.data.tokenized import TokenizedRows, concat_tokenized

if TYPE_CHECKING:
    # Ray Train's controller imports `training.trainer`; torch would add seconds.
    from training.task import TrainingTask

PART_CHARS = 1 << 22
"""Characters that one process tokenizes: a million tokens, which take 7 to 20 seconds. For less,
another process is not worth its start."""


def with_tokenized_rows(task: "TrainingTask", *, part_chars: int = PART_CHARS) -> "TrainingTask":
    """Return the task with tokens instead of training rows, and of validation rows if it validates
    tokens.

    All workers of a node share them in Ray's object store. A set of at least twice `part_chars`
    characters is divided among Ray tasks, one for each CPU of the cluster. Shards are tokenized
    already. Raises DataError like `TrainingTask.load_runtime`.
    """
    if task.validates_tokens and task.validation_tokens is None:
        tokens = _train_tokens(replace(task, train=task.validation), part_chars=part_chars)
        task = replace(task, validation_tokens=tokens)
    if not isinstance(task.train, Rows):
        return task
    return replace(task, train=_train_tokens(task, part_chars=part_chars))


def _train_tokens(task: "TrainingTask", *, part_chars: int) -> TokenizedRows:
    """Return the tokens of the training rows, which must be in memory."""
    assert isinstance(task.train, Rows)
    num_chars = sum(map(len, task.train.texts)) + sum(map(len, task.train.labels))
    num_parts = min(num_chars // part_chars, len(task.train))
    if num_parts > 1:
        num_parts = min(num_parts, int(ray.cluster_resources().get("CPU", 1)))
    num_parts = max(1, num_parts)
    bounds = np.linspace(0, len(task.train), num_parts + 1).astype(int).tolist()
    parts = [range(first, end) for first, end in pairwise(bounds)]
    return concat_tokenized(list(map_remote(partial(_tokenize, task), parts)))


def _tokenize(task: "TrainingTask", rows: range) -> TokenizedRows:
    from tailorbird.models.metadata import read_tokenizer  # imports torch

    return task.tokenize(rows, tokenizer=read_tokenizer(task.base_model))
